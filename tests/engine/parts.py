"""Get what the engine is made of, by the project's own scripts; each returns at once if its work is done."""

import os
import subprocess
from collections.abc import Sequence

from tests.engine.images import CHECKOUT
from tests.node import ON_NODE


def prepare(packages: str, *scripts: Sequence[str]) -> None:
    """Install a group of system packages, then run scripts with their arguments; on a node everything is there.

    Raises RuntimeError with the script's words if one fails, PermissionError if this is not root.
    """
    if ON_NODE:
        return
    if os.geteuid() != 0:
        raise PermissionError("an engine needs root: namespaces, mounts and cgroups are made")
    for name, *arguments in [("install-packages", packages), *scripts]:
        command = [str(CHECKOUT / "scripts" / name), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RuntimeError(f"scripts/{name} failed: {(ended.stderr or ended.stdout).strip()}")
