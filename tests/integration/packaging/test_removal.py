"""What the packages' scripts tell systemd when a type goes: run in a /run of their own, with a systemctl that notes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[3] / "packaging/debian"
SCENE = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/sandboxd/$1/pod
touch /run/sandboxd/$1/pod/sandbox.json
exec sh "$2" $3
"""


def run_prerm(tmp_path: Path, kind: str, *arguments: str) -> tuple[str, str]:
    """Run the script that dpkg calls before it removes a package; what it has told systemd, and us."""
    notes = tmp_path / "notes"
    notes.touch()
    for program, text in ("systemctl", f'echo "$@" >>{notes}'), ("py3clean", ""):
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    script = DEBIAN / f"sandboxd-{kind}/prerm"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", SCENE, "scene", kind, str(script), " ".join(arguments)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return notes.read_text(), done.stderr


@pytest.mark.parametrize("kind", ["qemu", "wasm"])
def test_the_daemon_of_a_type_goes_with_its_package(tmp_path: Path, kind: str) -> None:
    told, said = run_prerm(tmp_path, kind, "remove")
    assert told == f"disable --now sandboxd@{kind}.service\n"
    assert "containers of 1 pods go on running" in said


@pytest.mark.parametrize("kind", ["qemu", "wasm"])
def test_an_upgrade_leaves_the_daemon_of_a_type_alone(tmp_path: Path, kind: str) -> None:
    assert run_prerm(tmp_path, kind, "upgrade", "2.0") == ("", "")
