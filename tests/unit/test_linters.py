"""The linters are tests: what they refuse does not get in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "--no-cache"], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "--no-cache"], id="ruff format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports", "--no-logo"], id="lint-imports"),
    ],
)
@pytest.mark.timeout(300)
def test_the_tree_passes(command: list[str]) -> None:
    tool = BIN / command[0]
    if not tool.exists():
        pytest.skip(f"{command[0]} is not installed next to {sys.executable}")
    done = subprocess.run(
        [str(tool), *command[1:]],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}:\n{done.stdout}", pytrace=False)


def test_the_import_rules_are_about_modules_that_exist() -> None:
    """A contract about a module that was renamed would otherwise hold forever."""
    names = re.findall(r'"(common\.[\w.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {name for name in names if not name.startswith("common.config.option")}
    missing = [
        name
        for name in sorted(named)
        if not ((ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").is_file())
    ]
    assert missing == []
