"""The command line of image building."""

from pathlib import Path

import pytest

from vmm.image.__main__ import main


def test_what_can_be_done_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["build", "--help"])

    assert "--kernel {cloud,monolithic}" in capsys.readouterr().out


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "cloud.json")]) == 1

    error = capsys.readouterr().err
    assert error.startswith("guest image: there is no guest image ") and error.count("\n") == 1


def test_an_empty_directory_needs_no_pruning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
