"""One inotify descriptor tells each watch about its own file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.linux.inotify import IN_CREATE, IN_DELETE_SELF, IN_IGNORED, IN_MODIFY, Inotify


@pytest.fixture
async def inotify() -> AsyncIterator[Inotify]:
    inotify = Inotify(asyncio.get_running_loop())
    yield inotify
    inotify.close()
    inotify.close()


async def test_a_change_calls_back_the_watch_of_that_file_only(inotify: Inotify, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("a", "b"):
        (tmp_path / name).touch()
        inotify.add_watch(str(tmp_path / name), IN_MODIFY, lambda mask, name=name: seen.append((name, mask)))  # type: ignore[misc]
    (tmp_path / "b").write_text("x")
    await asyncio.sleep(0.02)
    assert seen == [("b", IN_MODIFY)]


async def test_names_in_directories_do_not_confuse_the_stream(inotify: Inotify, tmp_path: Path) -> None:
    seen: list[int] = []
    inotify.add_watch(str(tmp_path), IN_CREATE, seen.append)
    for length in (1, 15, 16, 17, 200):
        (tmp_path / ("x" * length)).touch()
    await asyncio.sleep(0.02)
    assert seen == [IN_CREATE]


async def test_after_removal_there_are_no_calls(inotify: Inotify, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.touch()
    seen: list[int] = []
    wd = inotify.add_watch(str(file), IN_MODIFY, seen.append)
    inotify.remove(wd)
    inotify.remove(wd)
    file.write_text("x")
    await asyncio.sleep(0.02)
    assert seen == []


async def test_a_file_that_goes_is_told_once_and_forgotten(inotify: Inotify, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.touch()
    seen: list[int] = []
    wd = inotify.add_watch(str(file), IN_MODIFY | IN_DELETE_SELF, seen.append)
    file.unlink()
    await asyncio.sleep(0.02)
    assert len(seen) == 1
    assert seen[0] & IN_IGNORED
    inotify.remove(wd)


async def test_watching_a_file_twice_is_refused(inotify: Inotify, tmp_path: Path) -> None:
    inotify.add_watch(str(tmp_path), IN_CREATE, lambda _mask: None)
    with pytest.raises(FileExistsError) as caught:
        inotify.add_watch(str(tmp_path), IN_CREATE, lambda _mask: None)
    assert caught.value.filename == str(tmp_path)


async def test_a_missing_file_is_named(inotify: Inotify, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        inotify.add_watch(str(tmp_path / "none"), IN_MODIFY, lambda _mask: None)
    assert caught.value.filename == str(tmp_path / "none")
