"""The guest image of this checkout for tests: built by its own command, or found as built."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DIRECTORY = CHECKOUT / ".cache/guest"


@cache
def guest_image(*options: str, directory: Path = DIRECTORY) -> Path:
    """Return the manifest of an image that is built with some options of `python -m vmm.image build`.

    Raises RuntimeError with the builder's words.
    """
    command = [sys.executable, "-m", "vmm.image", "build", "--directory", str(directory), *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"no guest image:\n{done.stderr.strip()}")
    return Path(done.stdout.strip())
