"""Pods in real machines: disks that come and go with their containers, and images that change under them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.guest_image import guest_image
from tests.integration.daemon.client import Container, Controller, Pod
from tests.integration.daemon.lab import Daemon, Lab
from tests.integration.daemon.specs import DEVICES, pod_config
from tests.vm.machines import new_daemon
from vmm.image.manifest import GuestImage, load

SECTOR = 512
VOLUME = "/dev/volume"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("grpc_library"),
    pytest.mark.timeout(300),
]


@asynccontextmanager
async def pod_of(daemon: Daemon, name: str) -> AsyncIterator[Pod]:
    """A pod that was started, in a network namespace without interfaces."""
    controller = Controller(daemon)
    with daemon.lab.network(name) as netns:
        pod = Pod(daemon, controller, name, pod_config(name), netns)
        try:
            await pod.create()
            await pod.start()
            yield pod
        finally:
            await pod.remove()
            await controller.close()


# -- disks -----------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(lab: Lab, grpc_library: None) -> AsyncIterator[Pod]:
    daemon = new_daemon(lab, "disks")
    await daemon.start()
    async with pod_of(daemon, "disks") as pod:
        yield pod
    assert daemon.stop() == 0
    daemon.remove()


class Volume:
    """A block device of the host in front of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        command = ["losetup", "--find", "--show", str(path)]
        self.node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        device = os.stat(self.node).st_rdev
        self.numbers = {"type": "b", "major": os.major(device), "minor": os.minor(device)}

    def container(self, pod: Pod, access: str) -> Container:
        """A container whose volume it is."""
        rule = {"allow": True, "access": access, **self.numbers}
        changes = {
            "devices": [{"path": VOLUME, "fileMode": 0o660, "uid": 0, "gid": 0, **self.numbers}],
            "resources": {"devices": [*DEVICES, rule]},
        }
        return pod.container("sleep", "1000", changes=changes)

    def is_open_in(self, pod: Pod) -> bool:
        """Whether the pod's machine has it."""
        fds = pod.daemon.lab.path(f"/proc/{pod.pid}/fd")
        return self.node in {os.readlink(entry.path) for entry in os.scandir(fds)}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    path = tmp_path / "volume"
    path.write_bytes(b"from the host".ljust(8 << 20, b"\0"))
    volume = Volume(path)
    yield volume
    subprocess.run(["losetup", "--detach", volume.node], check=True)


async def test_a_block_volume_is_in_its_container_and_leaves_with_it(pod: Pod, volume: Volume) -> None:
    neighbour = await pod.running()
    for turn in ("first", "again"):
        container = volume.container(pod, "rwm")
        await container.create()
        assert volume.is_open_in(pod)
        await container.start()
        assert await container.run_exec("head", "-c", "13", VOLUME) == (0, "from the host")
        write = f"echo {turn} | dd of={VOLUME} bs={SECTOR} seek=1 conv=sync,fsync"
        assert (await container.run_exec("sh", "-c", write))[0] == 0
        assert volume.path.read_bytes()[SECTOR:].startswith(turn.encode())
        assert (await neighbour.run_exec("ls", VOLUME))[0] != 0
        await container.remove()
        assert not volume.is_open_in(pod)
    assert await neighbour.state() == "running"
    await neighbour.remove()


async def test_a_block_volume_that_is_read_only_is_so_in_the_guest(pod: Pod, volume: Volume) -> None:
    container = volume.container(pod, "r")
    await container.create()
    await container.start()
    assert await container.run_exec("head", "-c", "13", VOLUME) == (0, "from the host")
    assert (await container.run_exec("dd", "if=/dev/zero", f"of={VOLUME}", "count=1"))[0] != 0
    assert volume.path.read_bytes().startswith(b"from the host")
    await container.remove()


# -- images ----------------------------------------------------------------------------------------


class Shelf:
    """A directory with images, of which `current` is the one that is configured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.current = directory / "current.json"

    def put(self, image: GuestImage, name: str) -> GuestImage:
        """Put an image there, as its builder does: the files first, then the manifest in place of another."""
        for path in (image.kernel, image.ramdisk, image.root):
            if path is not None:
                shutil.copy(path, self.directory)
        (self.directory / name).write_text(image.manifest.to_json())
        return self.turn_to(name)

    def turn_to(self, name: str) -> GuestImage:
        (self.directory / "new").symlink_to(name)
        (self.directory / "new").rename(self.current)
        return load(str(self.current))


def root_of(pod: Pod) -> str:
    """The root image that a pod's machine was started with."""
    line = pod.daemon.lab.path(f"/proc/{pod.pid}/cmdline").read_text()
    (name,) = set(re.findall(r"root-[0-9a-f]{64}", line))
    return str(name)


async def test_pods_go_on_with_the_image_that_they_have_and_new_ones_get_the_new_one(
    lab: Lab, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path)
    old = shelf.put(load(str(guest_image())), "old.json")
    daemon = new_daemon(lab, "images", image=shelf.current)
    await daemon.start()
    async with pod_of(daemon, "old") as pod:
        assert root_of(pod) == old.root.name
        new = shelf.put(load(str(guest_image("--debug"))), "new.json")
        assert new.root.name != old.root.name
        # The guest has run nothing but its agent: the rest of its root is still to be read.
        for path in (old.root, old.kernel):
            if path not in (new.root, new.kernel):
                path.unlink()
        assert await pod.run("echo", "works") == (0, "works\n")
        async with pod_of(daemon, "new") as another:
            assert root_of(another) == new.root.name
            assert await another.run("echo", "works") == (0, "works\n")
        daemon.stop(signal.SIGKILL)
        await daemon.start()
        await pod.connect()
        assert await pod.run("echo", "works") == (0, "works\n")
    assert daemon.stop() == 0
    daemon.remove()
