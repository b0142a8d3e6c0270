"""Files that nobody can change any more."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from common.linux.sealed_file import sealed_file, sealed_program


def test_it_has_the_content_and_nobody_can_change_it() -> None:
    with sealed_file([b"one ", b"two"]) as fd:
        assert os.pread(fd, 100, 0) == b"one two"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError), open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as again:
            again.write(b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_program_is_executed_from_a_copy_that_nobody_can_change(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/echo", program)
    fd = sealed_program(str(program))
    try:
        program.write_text("something else")
        copy = f"/proc/{os.getpid()}/fd/{fd}"
        assert subprocess.check_output(["echo", "as", "before"], executable=copy) == b"as before\n"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError), open(copy, "r+b", buffering=0) as again:
            again.write(b"x")
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    finally:
        os.close(fd)


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sealed_program(str(tmp_path / "missing"))
