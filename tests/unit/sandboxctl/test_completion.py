"""Completion as bash does it, and what the scripts for other shells contain."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandboxctl.commands import SUMMARIES
from sandboxctl.main import main

IDS = """#!/bin/sh
case "$*" in
    "ps -q") echo pod-1; echo pod-2 ;;
    "ps -c -q") echo box-1 ;;
esac
"""
TRY = """
source completion
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_sandboxctl
echo "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["st"], "stats stop"),
        (["--json", "wa"], "wait"),
        (["stop", "p"], "pod-1 pod-2"),
        (["stop", "-f", "b"], "box-1"),
        (["exec", "b"], "box-1"),
        (["exec", "p"], ""),
        (["stop", "--ti"], "--timeout"),
        (["containerd", "--type", ""], "runc wasm qemu"),
        (["containerd", "ch"], "check"),
        (["ps", "--config", ""], ""),
    ],
)
def test_words_are_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], completed: str
) -> None:
    (tmp_path / "completion").write_text(script("bash", capsys))
    (tmp_path / "sandboxctl").write_text(IDS)
    (tmp_path / "sandboxctl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", "-c", TRY, "bash", "sandboxctl", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (completed, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_verb_and_its_options_are_known_to_each_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    for verb in SUMMARIES:
        assert verb in text
    option = "-l kubernetes" if shell == "fish" else "--kubernetes"
    assert option in text
