"""Runtimes are executed from a mount that nobody can write to, and see that they need not protect themselves."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.oci.read_only_program import ReadOnlyProgram
from tests.engine.namespaces import wait_until


@pytest.fixture
def program(tmp_path: Path) -> Iterator[ReadOnlyProgram]:
    """Named as a runtime, and no more than a program that prints."""
    path = tmp_path / "crun"
    shutil.copy("/bin/echo", path)
    program = ReadOnlyProgram(str(path))
    yield program
    program.close()


def output(program: ReadOnlyProgram, *arguments: str) -> str:
    return subprocess.check_output([program.path, *arguments], executable=program.executable(), text=True)


def mount_id(path: str) -> str:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    finally:
        os.close(fd)
    assert found is not None
    return found[1]


def test_all_calls_execute_it_from_one_mount_that_is_attached_nowhere(program: ReadOnlyProgram) -> None:
    executable = program.executable()
    assert executable != program.path
    assert program.executable() == executable
    assert output(program, "one") == "one\n"
    assert f"\n{mount_id(executable)} " not in Path("/proc/self/mountinfo").read_text()


def test_a_file_that_was_replaced_is_executed_from_then_on(program: ReadOnlyProgram) -> None:
    assert output(program, "one") == "one\n"
    shutil.copy("/bin/basename", f"{program.path}.new")
    os.replace(f"{program.path}.new", program.path)
    assert output(program, "/some/two") == "two\n"


def test_a_file_that_is_gone_is_named_by_whoever_executes_it(program: ReadOnlyProgram) -> None:
    assert program.executable() != program.path
    os.unlink(program.path)
    assert program.executable() == program.path


def test_when_closed_it_keeps_nothing_open(program: ReadOnlyProgram) -> None:
    executable = program.executable()
    program.close()
    assert not os.path.exists(executable)


@pytest.mark.parametrize("name", ["crun", "runc"])
def test_a_runtime_does_not_start_itself_again_and_nobody_can_change_it(tmp_path: Path, name: str) -> None:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    program = ReadOnlyProgram(path)
    bundle, fifo = tmp_path / "bundle", tmp_path / "bundle/config.json"
    bundle.mkdir()
    os.mkfifo(fifo)
    arguments = ["--root", str(tmp_path / "state"), "run", "--bundle", str(bundle), "waits"]
    executable = program.executable()
    process = subprocess.Popen([path, *arguments], executable=executable, stderr=subprocess.DEVNULL)
    # As long as they are open it waits for what it reads.
    writers: list[int] = []
    try:

        def reads_its_bundle() -> bool:
            try:
                writers.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                assert error.errno == errno.ENXIO
            return bool(writers)

        wait_until(reads_its_bundle, timeout_s=20, what="the runtime to read its bundle")
        seen = f"/proc/{process.pid}/exe"
        assert mount_id(seen) == mount_id(executable)
        changes: list[Callable[[], object]] = [
            lambda: os.chmod(seen, 0),
            lambda: os.utime(seen),
            lambda: os.setxattr(seen, "user.a", b"b"),
        ]
        for change in changes:
            with pytest.raises(OSError, match="Read-only file system"):
                change()
        # While it is executed; later it is the mount that forbids it.
        with pytest.raises(OSError, match="Text file busy"):
            os.open(seen, os.O_RDWR)
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(seen, os.O_RDONLY | os.O_TRUNC)
    finally:
        process.kill()
        process.wait()
        program.close()
        for fd in writers:
            os.close(fd)
