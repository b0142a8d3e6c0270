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
        store = NoStore()
        outlasting = Outlasting(store, ConnectionJournal(f"{state_dir}/.journal", store), None)
        return lambda: RuncSandboxer(config, outlasting)

    async def abandon(self, sandbox: Any) -> None:
        sandbox._server.close()
        await sandbox._server.wait_closed()
        close_all(sandbox._namespaces._held)
        sandbox._shm.release()
