"""Log files that others append to stay short, whatever is written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common import log_files
from common.log_files import LIMIT_BYTES, LogFiles, shorten


@pytest.fixture
async def files(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LogFiles]:
    monkeypatch.setattr(log_files, "_REST_S", 0.01)
    files = LogFiles()
    yield files
    files.close()


def test_a_short_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    shorten(str(path), 100)
    assert path.read_bytes() == b"x" * 100


def test_of_a_long_file_the_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old" * 100 + b"new" * 10)
    shorten(str(path), 60)
    assert path.read_bytes() == b"new" * 10


def test_no_part_of_a_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100 + b"part\nfirst\nlast\n")
    shorten(str(path), 30)
    assert path.read_bytes() == b"first\nlast\n"


def test_whoever_appends_goes_on_at_the_new_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * 200)
        shorten(str(path), 100)
        writer.write(b"b")
    assert path.read_bytes() == b"a" * 50 + b"b"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x" * 200)
    (tmp_path / "log").symlink_to("target")
    with pytest.raises(OSError, match="symbolic links"):
        shorten(str(tmp_path / "log"), 100)
    assert (tmp_path / "target").stat().st_size == 200


async def test_a_file_that_grows_without_end_stays_short(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    files.watch(str(path))
    files.watch(str(path))
    with path.open("ab", buffering=0) as writer:
        for _ in range(12):
            writer.write(b"x" * (LIMIT_BYTES // 4))
            await asyncio.sleep(0.03)
    for _ in range(2000):
        if path.stat().st_size <= LIMIT_BYTES:
            break
        await asyncio.sleep(0.01)
    assert path.stat().st_size <= LIMIT_BYTES


async def test_a_file_that_was_long_before_is_cut_at_once(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 2 * LIMIT_BYTES)
    files.watch(str(path))
    assert path.stat().st_size == LIMIT_BYTES // 2


async def test_a_file_that_is_gone_is_no_error(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.watch(str(path))
    path.touch()
    files.watch(str(path))
    os.unlink(path)
    await asyncio.sleep(0.05)
    files.forget(str(path))
    path.touch()
    files.watch(str(path))


async def test_what_is_written_is_looked_at(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before")
    seen: list[str] = []
    looked = asyncio.Event()

    def look() -> None:
        seen.append(path.read_text())
        looked.set()

    files.watch(str(path), look)
    assert seen == ["before"]
    for text in ("first", "second"):
        looked.clear()
        path.write_text(text)
        async with asyncio.timeout(5):
            await looked.wait()
        assert seen[-1] == text


async def test_what_is_forgotten_grows_on(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    files.watch(str(path))
    files.forget(str(path))
    path.write_bytes(b"x" * 2 * LIMIT_BYTES)
    await asyncio.sleep(0.05)
    assert path.stat().st_size == 2 * LIMIT_BYTES
