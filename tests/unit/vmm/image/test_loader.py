"""The first program of a guest, run on the machine of the test: it makes its calls, becomes another or says why not."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from vmm.image.loader import Call, Module, program, ramdisk

CHDIR, EXECVE = 80, 59

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="guests are x86_64 alone"),
    pytest.mark.may_skip("what the machine is"),
]


def run(directory: Path, calls: list[Call], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = directory / "loader"
    path.write_bytes(program(calls))
    path.chmod(0o755)
    return subprocess.run(
        [path, *arguments], env={"KEPT": "environment"}, capture_output=True, text=True, check=False
    )


def test_it_becomes_the_last_with_its_own_arguments_and_environment(tmp_path: Path) -> None:
    calls = [Call("go there", CHDIR, (b"/proc",)), Call("start sh", EXECVE, (b"/bin/sh",))]

    done = run(tmp_path, calls, "-c", 'echo "$PWD $KEPT $0"', "zero")

    assert (done.stdout, done.stderr, done.returncode) == ("/proc environment zero\n", "", 0)


def test_a_call_that_must_not_fail_ends_it_with_its_name_and_the_error(tmp_path: Path) -> None:
    calls = [
        Call("enter a place", CHDIR, (b"/nowhere",)),
        Call("start true", EXECVE, (b"/bin/true",)),
    ]

    done = run(tmp_path, calls)

    assert (done.stderr, done.returncode) == ("loader: cannot enter a place\n", errno.ENOENT)


def test_a_call_that_may_fail_does_not(tmp_path: Path) -> None:
    calls = [
        Call("enter a place", CHDIR, (b"/nowhere",), may_fail=True),
        Call("start echo", EXECVE, (b"/bin/echo",)),
    ]

    assert run(tmp_path, calls, "went on").stdout == "went on\n"


def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, [Call("start /init", EXECVE, (b"/no/init",))])

    assert (done.stderr, done.returncode) == ("loader: cannot start /init\n", errno.ENOENT)


def test_a_ramdisk_is_the_same_for_the_same_modules() -> None:
    modules = [Module("a", b"\x7fELF a"), Module("b", b"\x7fELF b", optional=True)]

    first, second = (
        ramdisk(modules, root="/dev/vda", file_system="erofs", init="/usr/bin/python3") for _ in range(2)
    )

    assert first == second
    assert first.index(b"\x7fELF a") < first.index(b"\x7fELF b") < first.index(b"/usr/bin/python3\0")
