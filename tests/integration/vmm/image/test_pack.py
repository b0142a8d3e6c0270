"""Root file systems are packed by the real program: the same content gives the same bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.children import children, reaped
from vmm.image import root
from vmm.image.tools import Tools


@pytest.fixture
async def tools() -> AsyncIterator[Tools]:
    before = children()
    tools = Tools()
    yield tools
    await reaped(before)
    tools.close()


def lay_out(tree: Path, names: list[str]) -> Path:
    """Make a directory whose entries were made in the given order, at times of their own, by whoever runs this."""
    tree.mkdir()
    for age, name in enumerate(names):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 2000)
        path.chmod(0o755)
        os.utime(path, (1_000_000_000 + age, 1_000_000_000 + age))
    (tree / "link").symlink_to("usr")
    return tree


async def test_the_same_content_gives_the_same_image(tmp_path: Path, tools: Tools) -> None:
    names = [f"usr/{kind}/{number}" for kind in ("bin", "lib") for number in range(60)]
    images = []
    for place, order in (("one", names), ("other", names[::-1])):
        image = tmp_path / f"{place}.erofs"
        await root.pack(tools, lay_out(tmp_path / place, order), image)
        images.append(image.read_bytes())

    assert images[0] == images[1]


async def test_other_content_gives_another_image(tmp_path: Path, tools: Tools) -> None:
    images = []
    for place in ("one", "other"):
        image = tmp_path / f"{place}.erofs"
        await root.pack(tools, lay_out(tmp_path / place, [place]), image)
        images.append(image.read_bytes())

    assert images[0] != images[1]
