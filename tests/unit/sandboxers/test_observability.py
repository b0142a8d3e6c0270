"""What a daemon shows of itself: only what its configuration asks for, and never at the pods' expense."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import log
from common.log import observe_events
from common.ttrpc import Server
from sandboxers.config import MetricsConfig
from sandboxers.garbage import Garbage
from sandboxers.observability import Observability
from sandboxers.runc.config import RuncConfig
from tests.unit.sandboxers.conftest import Daemon

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _unobserved() -> Iterator[None]:
    yield
    observe_events(None)
    Server.observe(None)


def test_nothing_is_loaded_for_what_is_off(state_dir: Path) -> None:
    program = (
        "import json, sys\n"
        "from sandboxers.observability import Observability\n"
        "from sandboxers.runc.config import RuncConfig\n"
        f"seen = Observability(RuncConfig(state_dir={str(state_dir)!r}), 'runc')\n"
        "print(json.dumps([seen.call_observer is None, list(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    unobserved, loaded = json.loads(done.stdout)
    assert unobserved
    heavy = ("opentelemetry", "requests", "sandboxers.metrics.figures", "sandboxers.tracing.spans")
    assert [name for name in heavy if name in loaded] == []


async def test_an_address_that_is_taken_is_told_and_pods_are_served(daemon: Daemon, state_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        config = RuncConfig(state_dir=str(state_dir), metrics=MetricsConfig(address=address))
        with log.capture() as lines:
            seen = Observability(config, "runc")
            await seen.listen(daemon.registry, Garbage(daemon.registry, str(state_dir), "", 0, 0))
            seen.close()
    assert [line["event"] for line in lines] == ["metrics.not_served"]
    assert address in lines[0]["error"]


def test_each_daemon_of_a_state_directory_is_another_generation(state_dir: Path) -> None:
    for generation in (1, 2):
        seen = Observability(RuncConfig(state_dir=str(state_dir)), "runc")
        assert seen.generation == generation
        seen.close()
