"""The modules that a guest's interpreter finds, laid out as `vmm.image` does, for an interpreter of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import google.protobuf

CHECKOUT = Path(__file__).resolve().parents[1]
_AGENT = CHECKOUT / "vmm/agent"

# Debian 12's, which the image is made of; the modules that stand in for its own know its internals.
VERSION = "3.11"
INTERPRETER = Path(f"/usr/bin/python{VERSION}")


def lay_out(target: Path) -> list[str]:
    """Fill a directory and return a search path that begins with it."""
    wheel = Path(google.protobuf.__file__).parents[1]
    shutil.copytree(wheel, target / "google", ignore=shutil.ignore_patterns("__pycache__"))
    for directory in [target / "google", *(target / "google").rglob("*/")]:
        (directory / "__init__.py").touch()
    shutil.copytree(_AGENT / "protobuf", target, dirs_exist_ok=True)
    shutil.copytree(_AGENT / "stdlib", target, dirs_exist_ok=True)
    return [str(target), str(CHECKOUT)]


def command(search_path: list[str], program: str, *arguments: str) -> list[str]:
    """Return the command line of a program, given as source, that finds these modules first."""
    start = f"import sys; sys.path[:0] = {search_path!r}; {program}"
    return [str(INTERPRETER), "-I", "-S", "-B", "-c", start, *arguments]


def is_there() -> bool:
    """Whether this machine has the guest's interpreter."""
    return INTERPRETER.exists()
