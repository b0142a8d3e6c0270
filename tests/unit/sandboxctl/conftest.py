"""What tests of several verbs need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory of the test's own whose path is short enough for a state directory."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
