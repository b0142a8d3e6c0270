"""The image with the agent in it boots to its announcement, holds nothing that it need not, and is always the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.process.exits import ExitWatcher
from common.transport import transport_of
from tests.guest_image import DIRECTORY, guest_image
from tests.vm import qemu
from vmm.guest.reception import Announcement, GuestEvent, Reception
from vmm.hypervisors.hypervisor import GuestExit, VirtualMachine
from vmm.hypervisors.machine import Place, Vsock
from vmm.image import manifest
from vmm.image.manifest import GuestImage

BOOT_LIMIT_S = 120
MONOLITHIC = DIRECTORY / "monolithic.json"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no erofs-utils: run scripts/setup test"),
]


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return manifest.load(guest_image())


@pytest.fixture(scope="module")
def root(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the root file system."""
    directory = tmp_path_factory.mktemp("root") / "root"
    subprocess.run(
        ["fsck.erofs", f"--extract={directory}", image.root], stdout=subprocess.DEVNULL, check=True
    )
    return directory


@pytest.fixture
async def machine() -> AsyncIterator[VirtualMachine]:
    """A machine that is not started; its directory's path is short, as it holds sockets."""
    exits = ExitWatcher()
    hypervisor = qemu.new_hypervisor(exits)
    with tempfile.TemporaryDirectory(prefix="vm-") as directory:
        machine = hypervisor.machine(Place(directory))
        yield machine
        await machine.stop(0)
        machine.close()
    hypervisor.close()
    exits.close()


async def announcement_of(image: GuestImage, machine: VirtualMachine) -> Announcement:
    """Boot an image until its agent announces itself."""

    async def on_event(_: GuestEvent) -> None:
        pass

    def on_exit(end: GuestExit) -> None:
        reception.lose(
            RuntimeError(f"{end.message}\n{Path(machine.console_path).read_text(errors='replace')}")
        )

    with Reception(transport_of(machine.vsock), on_event) as reception:
        await machine.start(qemu.boot_config_of(image), [Vsock()], on_exit)
        return await reception.announcement(BOOT_LIMIT_S)


async def test_a_guest_with_the_agent_announces_itself(image: GuestImage, machine: VirtualMachine) -> None:
    announcement = await announcement_of(image, machine)

    assert announcement.kernel_release == image.manifest.kernel_release
    assert announcement.cpus == 1
    assert 0 < announcement.exec_ns < announcement.ready_ns


@pytest.mark.slow
@pytest.mark.may_skip("a kernel that takes minutes to compile is not compiled for this")
async def test_a_guest_without_kernel_modules_does_as_well(machine: VirtualMachine) -> None:
    if not MONOLITHIC.exists():
        pytest.skip("not built: run `make guest-kernel`")
    image = manifest.load(guest_image("--kernel", "monolithic"))

    announcement = await announcement_of(image, machine)

    assert image.ramdisk is None
    assert announcement.kernel_release == image.manifest.kernel_release


def test_the_files_are_what_the_manifest_says(image: GuestImage) -> None:
    image.verify()


def test_there_are_two_programs_and_no_shell(root: Path) -> None:
    programs = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK)
    }

    assert programs == {"usr/bin/crun", "usr/bin/python3", "usr/lib64/ld-linux-x86-64.so.2"}
    assert not any(path.is_file() for path in (root / "etc").rglob("*"))


def test_there_are_no_sources_and_no_modules_beside_those_of_the_manifest(
    root: Path, image: GuestImage
) -> None:
    stdlib = root / f"usr/lib/python{image.manifest.python}"
    names = {
        ".".join(path.relative_to(stdlib).with_suffix("").parts).removesuffix(".__init__")
        for path in stdlib.rglob("*")
        if path.is_file()
    }

    assert names == set(image.manifest.python_modules)
    assert not list(root.rglob("*.py"))


@pytest.mark.slow
def test_the_same_ingredients_give_the_same_image(image: GuestImage, tmp_path: Path) -> None:
    (tmp_path / "downloads").symlink_to(DIRECTORY / "downloads")

    again = manifest.load(guest_image(directory=tmp_path))

    assert again.manifest == image.manifest
    assert again.root.read_bytes() == image.root.read_bytes()


def test_a_build_with_nothing_new_changes_nothing(image: GuestImage) -> None:
    before = image.root.stat()

    guest_image.__wrapped__()

    assert image.root.stat() == before
