"""Programs that use the libraries of their own directory, while others run them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.engine.images import CHECKOUT

PROGRAM = "usr/bin/env"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a Debian package and its libraries unpack to."""
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir()
    shutil.copy(f"/{PROGRAM}", tmp_path / PROGRAM)
    for name in ("libc.so.6", "ld-linux-x86-64.so.2"):
        shutil.copy(f"/lib/x86_64-linux-gnu/{name}", libraries)
    return tmp_path


def link(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CHECKOUT / "scripts/link-privately"), str(tree), PROGRAM]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_who_has_the_program_open_keeps_it_as_it_was(tree: Path) -> None:
    program = tree / PROGRAM
    with program.open("rb") as before:
        original = before.read()
        assert link(tree).returncode == 0
        before.seek(0)
        assert before.read() == original
    assert program.read_bytes() != original
    libraries = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    assert f"libc.so.6 => {tree}/usr/lib" in libraries
    assert os.listdir(program.parent) == [program.name]


def test_a_program_that_would_not_run_stays_as_it_was(tree: Path) -> None:
    (tree / "usr/lib/x86_64-linux-gnu/libc.so.6").write_bytes(b"no library")
    original = (tree / PROGRAM).read_bytes()
    done = link(tree)
    assert (done.returncode, "does not run here" in done.stderr) == (1, True)
    assert (tree / PROGRAM).read_bytes() == original
    assert os.listdir(tree / "usr/bin") == ["env"]
