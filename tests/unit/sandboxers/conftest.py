"""A registry of pods of the fake sandboxer in a state directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandboxers.pod_config import PodConfig
from sandboxers.records import RECORD_FILE
from sandboxers.registry import SandboxRegistry
from tests.contract.fake_sandboxer import FakeSandboxer


class Daemon(NamedTuple):
    """One life of a daemon: a new one over the same state directory is its successor."""

    registry: SandboxRegistry
    sandboxer: FakeSandboxer


NewDaemon = Callable[[], Daemon]


def pod(sandbox_id: str = "pod", **changes: Any) -> PodConfig:
    return PodConfig(sandbox_id, **changes)


async def started(daemon: Daemon, sandbox_id: str = "pod") -> None:
    await daemon.registry.create(pod(sandbox_id))
    await daemon.registry.start(sandbox_id)


def record_path(state_dir: Path, sandbox_id: str = "pod") -> Path:
    return state_dir / sandbox_id / RECORD_FILE


def record(state_dir: Path, sandbox_id: str = "pod") -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(record_path(state_dir, sandbox_id).read_text())["record"]
    return fields


def change_record(state_dir: Path, **changes: Any) -> None:
    path = record_path(state_dir)
    envelope = json.loads(path.read_text())
    envelope["record"].update(changes)
    path.write_text(json.dumps(envelope))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def new_daemon(state_dir: Path) -> Iterator[NewDaemon]:
    daemons: list[Daemon] = []

    def make() -> Daemon:
        for daemon in daemons:
            daemon.sandboxer.close()
        sandboxer = FakeSandboxer()
        daemons.append(Daemon(SandboxRegistry(sandboxer, str(state_dir), stop_timeout_s=5), sandboxer))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.sandboxer.close()


@pytest.fixture
def daemon(new_daemon: NewDaemon) -> Daemon:
    return new_daemon()
