"""The contract of `TaskBackend`, for the fake one and for real runtimes."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.oci.runtime import OciRuntime
from common.process.exits import ExitWatcher
from common.task.oci_backend import OciBackend
from sandboxers.wasm.backend import WasmBackend
from sandboxers.wasm.config import ModulesConfig
from tests.contract.fake_backend import FakeBackend
from tests.contract.task_backend import TaskBackendContract
from tests.contract.wasm import make_rootfs, running_modules

APPLETS = ("sh", "sleep", "cat", "echo", "true", "test")

# crun refuses a host where the v2 hierarchy has controllers of its own: it is not shown that hierarchy.
CRUN_ON_A_HYBRID_HOST = """\
#!/bin/sh
exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified && exec crun "$@"' crun "$@"
"""


class TestFakeBackend(TaskBackendContract):
    """Processes without containers, as the unit tests use them."""

    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend()


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestOciBackend(TaskBackendContract):
    """Real containers."""

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        busybox = shutil.which("busybox")
        if busybox is None:
            pytest.skip("busybox is not installed: apt-get install busybox-static")
        root = tmp_path / "rootfs"
        for name in ("bin", "proc", "dev"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        return root

    @pytest.fixture(params=["crun", "runc"])
    def backend(
        self, request: pytest.FixtureRequest, exits: ExitWatcher, tmp_path: Path, subreaper: None
    ) -> Iterator[OciBackend]:
        if shutil.which(request.param) is None:
            pytest.skip(f"{request.param} is not installed")
        state = tmp_path / "state"
        state.mkdir()
        binary = request.param
        if binary == "crun" and os.path.ismount("/sys/fs/cgroup/unified"):
            binary = str(tmp_path / "crun")
            Path(binary).write_text(CRUN_ON_A_HYBRID_HOST)
            os.chmod(binary, 0o755)
        runtime = OciRuntime(binary, str(state), exits, timeout_s=20)
        yield OciBackend(runtime)
        runtime.close()


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestWasmBackend(TaskBackendContract):
    """Real modules."""

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        return make_rootfs(tmp_path / "rootfs")

    @pytest.fixture
    async def backend(
        self, exits: ExitWatcher, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, subreaper: None
    ) -> AsyncIterator[WasmBackend]:
        # One for all tests: that they find compiled what another one has left is part of it.
        config = ModulesConfig(cache_dir=str(tmp_path_factory.getbasetemp() / "modules"))
        async with running_modules(exits, tmp_path, config) as modules:
            yield modules.backend
