"""The contract of `Sandboxer`, for the fake one and for real pods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.descriptors.store import NoStore
from common.journal import ConnectionJournal
from common.linux.namespaces import close_all
from sandboxers.config import EngineConfig
from sandboxers.outlasting import Outlasting
from sandboxers.runc.config import RuncConfig
from sandboxers.runc.sandboxer import RuncSandboxer
from sandboxers.wasm.config import ModulesConfig, WasmConfig
from sandboxers.wasm.sandboxer import WasmSandboxer
from tests.contract.fake_sandboxer import FakeSandboxer
from tests.contract.sandboxer import NewSandboxer, SandboxerContract


class TestFakeSandboxer(SandboxerContract):
    """Files and a socket, as the unit tests use them."""

    @pytest.fixture
    def new_sandboxer(self) -> NewSandboxer:
        return FakeSandboxer


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestRuncSandboxer(SandboxerContract):
    """Real namespaces and mounts."""

    @pytest.fixture
    def new_sandboxer(self, tmp_path: Path, subreaper: None) -> NewSandboxer:
        state_dir = str(tmp_path / "state")
        config = RuncConfig(state_dir=state_dir, engine=EngineConfig(events_address=""))
        os.makedirs(state_dir)
        return lambda: RuncSandboxer(config, outlasting(state_dir))

    async def abandon(self, sandbox: Any) -> None:
        await abandon(sandbox)


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestWasmSandboxer(SandboxerContract):
    """The same pods as those of runc, around another backend."""

    @pytest.fixture
    def new_sandboxer(self, tmp_path: Path, subreaper: None) -> NewSandboxer:
        state_dir = str(tmp_path / "state")
        config = WasmConfig(
            state_dir=state_dir,
            engine=EngineConfig(events_address=""),
            modules=ModulesConfig(cache_dir=str(tmp_path / "modules")),
        )
        os.makedirs(state_dir)
        return lambda: WasmSandboxer(config, outlasting(state_dir))

    async def abandon(self, sandbox: Any) -> None:
        await abandon(sandbox)


def outlasting(state_dir: str) -> Outlasting:
    """Nothing outlasts a daemon of these tests."""
    store = NoStore()
    return Outlasting(store, ConnectionJournal(f"{state_dir}/.journal", store), None)


async def abandon(sandbox: Any) -> None:
    """Let go of what a sandbox on the host holds."""
    sandbox._server.close()
    await sandbox._server.wait_closed()
    close_all(sandbox._namespaces._held)
    sandbox._shm.release()
