"""A runtime's program is executed from memory, where that is safe."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.oci import sealed_binary
from common.oci.sealed_binary import SealedBinary


@pytest.fixture
def crun(tmp_path: Path) -> Iterator[SealedBinary]:
    """Named as the runtime, and no more than a program that prints."""
    path = tmp_path / "crun"
    shutil.copy("/bin/echo", path)
    binary = SealedBinary(str(path))
    yield binary
    binary.close()


def run(binary: SealedBinary, *arguments: str) -> str:
    return subprocess.check_output([binary.path, *arguments], executable=binary.executable(), text=True)


def test_all_calls_execute_one_copy(crun: SealedBinary) -> None:
    executable = crun.executable()
    assert os.readlink(executable) == "/memfd:crun (deleted)"
    assert crun.executable() == executable
    assert run(crun, "one") == "one\n"


def test_a_file_that_was_replaced_is_executed_from_then_on(crun: SealedBinary) -> None:
    assert run(crun, "one") == "one\n"
    shutil.copy("/bin/basename", f"{crun.path}.new")
    os.replace(f"{crun.path}.new", crun.path)
    assert run(crun, "/some/two") == "two\n"


def test_a_file_that_is_gone_is_named_by_whoever_executes_it(crun: SealedBinary) -> None:
    assert crun.executable() != crun.path
    os.unlink(crun.path)
    assert crun.executable() == crun.path


def test_when_closed_it_keeps_nothing_open(crun: SealedBinary) -> None:
    executable = crun.executable()
    crun.close()
    assert not os.path.exists(executable)


@pytest.mark.parametrize("name", ["runc", "runsc", "kata-runtime"])
def test_other_programs_are_left_as_they_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy("/bin/echo", path)
    assert SealedBinary(str(path)).executable() == str(path)


def test_a_script_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "crun"
    path.write_text("#!/bin/sh\n")
    assert SealedBinary(str(path)).executable() == str(path)


def test_a_large_program_is_left_as_it_is(crun: SealedBinary) -> None:
    os.truncate(crun.path, 4 * 1024 * 1024 + 1)
    assert crun.executable() == crun.path


def test_where_selinux_goes_by_labels_the_file_itself_is_executed(
    crun: SealedBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_binary, "_SELINUX", "/proc/self/stat")
    assert crun.executable() == crun.path
