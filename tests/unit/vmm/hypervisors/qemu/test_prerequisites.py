"""What is missing is named, with the command that gets it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import FailedPrecondition
from common.process.exits import ExitWatcher
from vmm.hypervisors.machine import BootConfig, Disk, Share, Vsock
from vmm.hypervisors.qemu.prerequisites import Programs, check_all, check_installed, find_program, version_of

NOTHING = Programs("/nonesuch/qemu", "/nonesuch/virtiofsd", "/nonesuch/vsock")


@pytest.fixture
async def exits() -> AsyncIterator[ExitWatcher]:
    exits = ExitWatcher()
    yield exits
    exits.close()


@pytest.fixture
def boot(tmp_path: Path) -> BootConfig:
    for name in ("kernel", "root"):
        (tmp_path / name).touch()
    return BootConfig(str(tmp_path / "kernel"), str(tmp_path / "root"))


def program(path: Path, says: str, code: int = 0) -> str:
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def test_programs_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_program("sh").endswith("/sh")
    own = program(tmp_path / "own", "")
    assert find_program(own) == own
    assert find_program(str(tmp_path)) == ""
    assert find_program("no-such-program") == ""


def test_all_that_is_missing_is_named_at_once(boot: BootConfig) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        check_installed(
            NOTHING, BootConfig("/nonesuch/kernel"), [Vsock(), Share("s", "/")], vhost_vsock=False
        )
    message = str(raised.value)
    for part in (
        "qemu-system-x86",
        "fetch-vm-helpers",
        "modprobe vhost_vsock",
        "/nonesuch/kernel",
        f"{sys.executable} -m vmm.image build --directory /nonesuch",
    ):
        assert part in message


def test_what_a_machine_does_not_use_need_not_be_there(boot: BootConfig, tmp_path: Path) -> None:
    programs = Programs(program(tmp_path / "qemu", ""), NOTHING.virtiofsd, NOTHING.vsock_daemon)
    check_installed(programs, boot, [Disk("d", "/d")], vhost_vsock=False)
    check_installed(programs, boot, [Vsock()], vhost_vsock=True)
    check_installed(programs, None, [], vhost_vsock=False)
    with pytest.raises(FailedPrecondition, match="vsock"):
        check_installed(programs, None, [Vsock()], vhost_vsock=False)


@pytest.mark.parametrize(
    ("says", "code", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", 0, (7, 2, 22)),
        ("virtiofsd 1.14.0", 0, (1, 14, 0)),
        ("no version", 0, ()),
        ("version 1.2", 1, ()),
    ],
)
async def test_versions_are_read_from_what_programs_say(
    exits: ExitWatcher, tmp_path: Path, says: str, code: int, version: tuple[int, ...]
) -> None:
    assert await version_of(program(tmp_path / "p", says, code), exits) == version


async def test_a_report_says_what_is_there_and_what_is_not(
    exits: ExitWatcher, boot: BootConfig, tmp_path: Path
) -> None:
    programs = Programs(
        program(tmp_path / "qemu", "QEMU 8.0.1"), NOTHING.virtiofsd, program(tmp_path / "v", "v 1.0")
    )
    report = {each.name: each for each in await check_all(programs, boot, exits)}
    assert report["QEMU"].found == f"{tmp_path}/qemu 8.0.1"
    assert not report["virtiofsd"].is_met
    assert "fetch-vm-helpers" in report["virtiofsd"].remedy
    assert report["vsock"].is_met
    assert report["guest kernel"].is_met
    assert report["vhost-net"].is_met, "it is optional"


async def test_an_old_qemu_counts_as_missing(exits: ExitWatcher, boot: BootConfig, tmp_path: Path) -> None:
    programs = Programs(program(tmp_path / "qemu", "QEMU emulator version 6.2.0"), "x", "y")
    qemu = (await check_all(programs, boot, exits))[0]
    assert not qemu.is_met
    assert "6.2.0 is too old, at least 7.2 is needed" in qemu.remedy
