"""Which programs are executed from a mount of their own; what such a mount does is shown by an integration test."""

import shutil
from pathlib import Path

import pytest

from common.oci.read_only_program import ReadOnlyProgram


@pytest.mark.parametrize("name", ["runsc", "kata-runtime"])
def test_programs_that_do_not_protect_themselves_are_executed_as_they_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy("/bin/echo", path)
    assert ReadOnlyProgram(str(path)).executable() == str(path)


def test_a_script_is_executed_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "crun"
    path.write_text("#!/bin/sh\n")
    assert ReadOnlyProgram(str(path)).executable() == str(path)


def test_a_program_that_is_not_there_is_left_to_whoever_executes_it(tmp_path: Path) -> None:
    assert ReadOnlyProgram(str(tmp_path / "crun")).executable() == str(tmp_path / "crun")


def test_a_program_that_cannot_be_mounted_is_executed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: str, *, read_only: bool) -> int:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr("common.oci.read_only_program.hold_mount", refuse)
    path = tmp_path / "crun"
    shutil.copy("/bin/echo", path)
    program = ReadOnlyProgram(str(path))
    assert program.executable() == str(path)
    assert program.executable() == str(path)
