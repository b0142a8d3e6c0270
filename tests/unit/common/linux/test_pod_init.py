"""The init of a shared PID namespace is a valid program that sleeps until it is killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from common.errors import Unimplemented
from common.linux.pod_init import pod_init_elf


def test_it_sleeps_without_using_the_processor_and_dies_by_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "init"
    path.write_bytes(pod_init_elf())
    path.chmod(0o700)
    process = subprocess.Popen([path])
    try:
        time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        assert stat[0] == "S"
        assert int(stat[11]) + int(stat[12]) <= 1, "clock ticks used"
    finally:
        process.kill()
    assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_each_architecture_gets_its_own_code_and_an_entry_inside_the_file(machine: str, number: int) -> None:
    elf = pod_init_elf(machine)
    assert elf[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", elf, 18) == (number,)
    (entry,) = struct.unpack_from("<Q", elf, 24)
    offset, address, _, file_size, memory_size = struct.unpack_from("<5Q", elf, 64 + 8)
    assert (offset, file_size, memory_size) == (0, len(elf), len(elf))
    assert address < entry < address + len(elf)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(Unimplemented, match="m68k"):
        pod_init_elf("m68k")


def test_the_machine_of_this_host_is_supported() -> None:
    assert len(pod_init_elf(os.uname().machine)) < 4096
