"""Configuration as an operator sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE
from sandboxctl.main import main


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "runc.yaml").write_text("type: runc\ngc:\n  grace_s: 5.0\n")
    return tmp_path


def test_every_file_is_checked_and_each_mistake_is_told(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out == f"{directory}/runc.yaml: ok\n"
    (directory / "a.yaml").write_text("sokcet: /x\n")
    (directory / "b.yaml").write_text("type: nosuch\n")
    assert main(["config", "check"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{directory}/runc.yaml: ok\n"
    assert [line.split(": ")[1] for line in printed.err.splitlines()] == [
        f"{directory}/{n}.yaml" for n in "ab"
    ]


def test_files_that_contradict_each_other_are_told_of(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "twice.yaml").write_text("type: runc\n")
    assert main(["config", "check"]) == 1
    assert "both have the state_dir" in capsys.readouterr().err


def test_values_in_force_are_shown_with_what_was_changed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gc.grace_s: 5.0  # not the default" in lines
    assert "gc.interval_s: 60.0" in lines
    assert main(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[f"{directory}/runc.yaml"]["gc.grace_s"] == 5.0


def test_keys_are_listed_with_their_meaning_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys", "--type", "wasm"]) == 0
    text = capsys.readouterr().out
    assert "modules.engine" in text and "runtime.binary" not in text
    assert main(["config", "keys", "--json"]) == 0
    assert {"runc", "wasm", "qemu"} <= json.loads(capsys.readouterr().out).keys()
