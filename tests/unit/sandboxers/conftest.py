"""A registry of pods of the fake sandboxer in a state directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sandboxers.registry import SandboxRegistry
from tests.contract.fake_sandboxer import FakeSandboxer


class Daemon(NamedTuple):
    """One life of a daemon: a new one over the same state directory is its successor."""

    registry: SandboxRegistry
    sandboxer: FakeSandboxer


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def new_daemon(state_dir: Path) -> Iterator[Callable[[], Daemon]]:
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
def daemon(new_daemon: Callable[[], Daemon]) -> Daemon:
    return new_daemon()
