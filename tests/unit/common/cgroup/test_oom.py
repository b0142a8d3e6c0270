"""The watcher on v2, against plain files: inotify does not mind which file system they are on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from common.cgroup.locate import UNIFIED, Cgroup, Hierarchies, Hierarchy
from common.cgroup.oom import OomWatcher, oom_kill_count


def make(tmp_path: Path, name: str) -> tuple[Cgroup, Path]:
    directory = tmp_path / name
    directory.mkdir()
    events = directory / "memory.events"
    events.write_text("oom 0\noom_kill 0\n")
    return Hierarchies({UNIFIED: Hierarchy(str(tmp_path), "/")}).cgroup({UNIFIED: f"/{name}"}), events


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0.005)


async def test_only_a_grown_counter_is_told_and_only_once(tmp_path: Path) -> None:
    cgroup, events = make(tmp_path, "a")
    watcher, told = OomWatcher(), list[int]()
    watcher.watch(cgroup, told.append)
    events.write_text("oom 9\noom_kill 0\n")  # short of memory, but nobody was killed
    await settle()
    assert told == []
    events.write_text("oom 9\noom_kill 3\n")
    await settle()
    events.write_text("oom 10\noom_kill 3\n")
    await settle()
    assert told == [3]
    watcher.close()


async def test_what_happened_before_the_watch_does_not_count(tmp_path: Path) -> None:
    cgroup, events = make(tmp_path, "a")
    events.write_text("oom_kill 7\n")
    watcher, told = OomWatcher(), list[int]()
    watch = watcher.watch(cgroup, told.append)
    assert not watch.check()
    events.write_text("oom_kill 8\n")
    assert watch.check()
    await settle()
    assert told == [1]
    watcher.close()


async def test_one_inotify_serves_all_cgroups(tmp_path: Path) -> None:
    watcher, told = OomWatcher(), list[str]()
    before = len(os.listdir("/proc/self/fd"))
    pairs = [make(tmp_path, f"c{number}") for number in range(50)]
    for cgroup, _ in pairs:
        watcher.watch(cgroup, lambda _, path=cgroup.path: told.append(path))  # type: ignore[misc]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    pairs[7][1].write_text("oom_kill 1\n")
    await settle()
    assert told == ["/c7"]
    watcher.close()


async def test_a_cancelled_watch_and_a_removed_cgroup_are_forgotten(tmp_path: Path) -> None:
    watcher, told = OomWatcher(), list[int]()
    cgroup, events = make(tmp_path, "a")
    gone, gone_events = make(tmp_path, "b")
    watch = watcher.watch(cgroup, told.append)
    watcher.watch(gone, told.append)
    assert watcher.watch_count == 2
    watch.cancel()
    watch.cancel()
    gone_events.unlink()
    events.write_text("oom_kill 1\n")
    await settle()
    assert (watcher.watch_count, told, watch.check()) == (0, [], False)
    assert oom_kill_count(gone) == 0
    assert oom_kill_count(cgroup) == 1
    watcher.close()
    watcher.close()


async def test_a_cgroup_without_memory_controller_is_never_told(tmp_path: Path) -> None:
    watcher = OomWatcher()
    root = Hierarchies({UNIFIED: Hierarchy(str(tmp_path), "/")}).cgroup({UNIFIED: "/"})
    (tmp_path / "empty").mkdir()
    empty = Hierarchies({UNIFIED: Hierarchy(str(tmp_path), "/")}).cgroup({UNIFIED: "/empty"})
    for cgroup in (root, empty):
        watch = watcher.watch(cgroup, lambda _: None)
        assert not watch.check()
        watch.cancel()
    watcher.close()
