"""The guest image of this checkout for tests: built by its own command, or found as built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.node import ON_NODE

CHECKOUT = Path(__file__).parents[1]
DIRECTORY = CHECKOUT / ".cache/guest"


@cache
def guest_image(*options: str, directory: Path = DIRECTORY) -> Path:
    """Return the manifest of an image that is built with some options of `python -m vmm.image build`.

    On a node it is found as it was brought. Raises RuntimeError with the builder's words.
    """
    if ON_NODE:
        return directory / f"{flavour(options)}.json"
    command = [sys.executable, "-m", "vmm.image", "build", "--directory", str(directory), *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"no guest image:\n{done.stderr.strip()}")
    return Path(done.stdout.strip())


def flavour(options: Sequence[str]) -> str:
    """Return the beginning of the name of an image that is built with options of one value each."""
    values = dict(zip(options[::2], options[1::2], strict=True))
    parts = [values.get("--kernel", "cloud")]
    if agent := values.get("--agent"):
        parts.append(Path(agent).stem)
    return "-".join(parts)
