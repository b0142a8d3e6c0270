"""A container's rootfs is mounted on the host no longer than somebody may look for it there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.cgroup import Hierarchies, OomWatcher
from common.errors import SandboxdError
from common.linux.mounts import MountSpec, make_private, mount, mounts_below
from common.oci.runtime import OciRuntime
from common.oci.spec import PodView
from common.process.exits import ExitWatcher
from common.task.backend import ContainerRequest, TaskParts
from common.task.container import Container
from common.task.host_preparer import HostPreparer
from common.task.oci_backend import OciBackend
from common.task.pod import TaskPod
from common.task.stdio import StdioSpec
from sandboxers.host.shared_memory import HostSharedMemory
from tests.contract.fake_backend import RecordingSink

MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
# Nothing here is about cgroups, which crun can leave alone; but on a host with v1 and v2 it also refuses to run
# where v2 has a controller, so it does not get to see v2 there.
CRUN = """#!/bin/sh
if grep -qs . /sys/fs/cgroup/unified/cgroup.controllers; then
    set -- unshare --mount --propagation slave \
        sh -c 'umount -l /sys/fs/cgroup/unified && exec "$@"' sh crun --cgroup-manager=disabled "$@"
else
    set -- crun --cgroup-manager=disabled "$@"
fi
exec "$@"
"""
RUNTIMES = {"crun": CRUN, "runc": '#!/bin/sh\nexec runc "$@"\n'}
SEES_ITS_FILES = ["/bin/sh", "-c", "cat /greeting /volume/note && exec sleep 60"]


@pytest.fixture(scope="module", autouse=True)
def _subreaper(subreaper: None) -> None:
    """Containers become children of this process."""


class Host:
    """A pod without namespaces of its own, an image, and one bundle, all on a tree that is shared with others."""

    def __init__(self, tree: Path, runtime: str, watcher: ExitWatcher) -> None:
        self.tree = tree
        self.rootfs = str(tree / "bundle/rootfs")
        self._id = f"rootfs-test-{os.getpid()}"
        image = tree / "image"
        for path in (
            image / "bin",
            image / "proc",
            image / "volume",
            tree / "bundle/rootfs",
            tree / "volume",
        ):
            path.mkdir(parents=True)
        shutil.copy2("/bin/busybox", image / "bin/busybox")
        for applet in ("sh", "cat", "sleep"):
            (image / "bin" / applet).symlink_to("busybox")
        (image / "greeting").write_text("from the image\n")
        (tree / "volume/note").write_text("from a volume\n")
        binary = tree / "runtime"
        binary.write_text(RUNTIMES[runtime])
        binary.chmod(0o755)
        backend = OciBackend(OciRuntime(str(binary), str(tree / "containers"), watcher, 20))
        self.parts = TaskParts(backend, watcher, RecordingSink(), OomWatcher(), Hierarchies({}))
        view = PodView({}, {}, "/dev/shm")
        preparer = HostPreparer(
            lambda: view, HostSharedMemory(), str(tree / "tasks"), self.parts.hierarchies, False
        )
        self.pod = TaskPod("pod", self.parts, preparer, str(tree))

    @property
    def mounts(self) -> list[str]:
        """What is mounted on the host at the rootfs and below."""
        return mounts_below(self.rootfs)

    @property
    def output(self) -> str:
        return (self.tree / "output").read_text()

    async def create(
        self, *, hooks: dict[str, Any] | None = None, propagation: str = "", mounted: bool = True
    ) -> Container:
        """Make a container; unless `mounted`, its rootfs is none of the daemon's business."""
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "args": SEES_ITS_FILES,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/volume",
                    "type": "bind",
                    "source": str(self.tree / "volume"),
                    "options": ["rbind", propagation or "rprivate"],
                },
            ],
            "hooks": hooks or {},
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "pid"}],
                **({"rootfsPropagation": propagation} if propagation else {}),
            },
        }
        (self.tree / "bundle/config.json").write_text(json.dumps(spec))
        rootfs = MountSpec("bind", str(self.tree / "image"), ("rbind", "rw"))
        stdio = StdioSpec(False, "", f"file://{self.tree}/output", "")
        request = ContainerRequest(self._id, str(self.tree / "bundle"), (rootfs,) if mounted else (), stdio)
        return await self.pod.create_container(request)

    async def start(self, container: Container) -> None:
        assert container.prepared is not None
        await self.parts.backend.start(container.id, container.prepared)

    async def close(self) -> None:
        await self.pod.delete_all()
        self.parts.ooms.close()
        self.parts.primer.close()


@pytest.fixture(params=RUNTIMES)
async def host(request: pytest.FixtureRequest, tree: Path, watcher: ExitWatcher) -> AsyncIterator[Host]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    # As on a real host, what is mounted here reaches the copies of this tree in other mount namespaces.
    shared = tree / "shared"
    shared.mkdir()
    mount(str(shared), str(shared), None, MS_BIND)
    # Where systemd has made / shared, the mount below it is a peer, and would get a second one of each.
    make_private(str(shared))
    mount(None, str(shared), None, MS_SHARED)
    host = Host(shared, request.param, watcher)
    yield host
    await host.close()


def seen_in(container: Container, path: str) -> str:
    return Path(f"/proc/{container.init.pid}/root{path}").read_text()


async def until_written(host: Host) -> str:
    async with asyncio.timeout(20):
        while host.output.count("\n") < 2:  # noqa: ASYNC110 - the container's own writing
            await asyncio.sleep(0.01)
    return host.output


@pytest.mark.parametrize("propagation", ["", "rslave", "rshared"])
async def test_a_container_keeps_its_files_without_a_mount_on_the_host(host: Host, propagation: str) -> None:
    container = await host.create(propagation=propagation)
    assert host.mounts == []
    assert os.listdir(host.rootfs) == []
    assert seen_in(container, "/greeting") == "from the image\n"
    await host.start(container)
    assert await until_written(host) == "from the image\nfrom a volume\n"
    assert host.mounts == []
    await host.pod.delete_container(container)
    assert host.mounts == []


async def test_what_the_container_writes_reaches_its_layer(host: Host) -> None:
    container = await host.create()
    Path(f"/proc/{container.init.pid}/root/written").write_text("later")
    assert (host.tree / "image/written").read_text() == "later"


@pytest.mark.parametrize("hook", ["poststart", "poststop"])
async def test_a_hook_that_runs_later_still_finds_the_rootfs(host: Host, hook: str) -> None:
    found = host.tree / "found"
    command = f"cat {host.rootfs}/greeting >{found}"
    container = await host.create(hooks={hook: [{"path": "/bin/sh", "args": ["sh", "-c", command]}]})
    assert host.mounts == [host.rootfs]
    await host.start(container)
    assert host.mounts == [host.rootfs]
    await host.pod.delete_container(container)
    assert found.read_text() == "from the image\n"
    assert host.mounts == []


async def test_hooks_that_have_run_when_the_container_exists_keep_nothing(host: Host) -> None:
    found = host.tree / "found"
    command = f"cat {host.rootfs}/greeting >{found}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", command]}
    await host.create(hooks={"createRuntime": [hook]})
    assert found.read_text() == "from the image\n"
    assert host.mounts == []


@pytest.mark.parametrize("hooks", [{}, {"poststop": [{"path": "/bin/true"}]}])
async def test_a_mount_of_the_engine_is_left_alone(host: Host, hooks: dict[str, Any]) -> None:
    mount(str(host.tree / "image"), host.rootfs, None, MS_BIND | MS_REC)
    container = await host.create(hooks=hooks, mounted=False)
    assert host.mounts == [host.rootfs]
    assert seen_in(container, "/greeting") == "from the image\n"
    await host.pod.delete_container(container)
    assert host.mounts == [host.rootfs]
    subprocess.run(["umount", host.rootfs], check=True)


async def test_a_rootfs_that_is_no_mount_is_left_alone(host: Host) -> None:
    shutil.copytree(host.tree / "image", host.rootfs, symlinks=True, dirs_exist_ok=True)
    container = await host.create(mounted=False)
    await host.pod.delete_container(container)
    assert (Path(host.rootfs) / "greeting").read_text() == "from the image\n"


async def test_a_mount_of_the_engine_survives_a_container_that_cannot_be_made(host: Host) -> None:
    mount(str(host.tree / "image"), host.rootfs, None, MS_BIND | MS_REC)
    failing = {"createRuntime": [{"path": "/bin/false"}]}
    with pytest.raises(SandboxdError):
        await host.create(hooks=failing, mounted=False)
    assert host.mounts == [host.rootfs]
    subprocess.run(["umount", host.rootfs], check=True)
    with pytest.raises(SandboxdError):
        await host.create(hooks=failing)
    assert host.mounts == []
