"""Cgroups that we make ourselves: their limits, who is in them, freezing; on whatever this host has."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cgroup import (
    Cgroup,
    Hierarchies,
    apply_limits,
    kill_all,
    make_cgroup,
    pids,
    read_metrics,
    remove_leaf,
    set_frozen,
)
from common.errors import AlreadyExists, InvalidArgument

ROOT = Path(__file__).parents[3]
MIB = 1 << 20

# Joins a cgroup by itself, says so, and counts.
COUNT = """
import sys, time
from common.cgroup import Hierarchies, join_cgroup
join_cgroup(Hierarchies.read().at(sys.argv[1]))
print("in", flush=True)
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.005)
"""


@pytest.fixture
def parent() -> Iterator[Cgroup]:
    """A parent that an engine would have made; with its own parents, so that controllers are handed down twice."""
    cgroup = Hierarchies.read().at(f"/sandboxd-made-{uuid.uuid4().hex[:8]}")
    yield cgroup
    remove_leaf(cgroup)


@pytest.fixture
def cgroup(parent: Cgroup) -> Cgroup:
    cgroup = Hierarchies.read().at(f"{parent.path}/pod/container")
    make_cgroup(cgroup)
    return cgroup


def value(cgroup: Cgroup, v1: str, v2: str) -> str:
    name = v2 if cgroup.unified else v1
    directory = cgroup.directory(name.partition(".")[0])
    assert directory is not None
    return Path(directory, name).read_text().strip()


async def counting(cgroup: Cgroup) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COUNT, cgroup.path, cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and await process.stdout.readline() == b"in\n"
    return process


async def test_a_process_joins_it_in_every_hierarchy_and_is_measured(cgroup: Cgroup) -> None:
    process = await counting(cgroup)
    try:
        assert pids(cgroup) == [process.pid]
        assert Hierarchies.read().locate(process.pid).path == cgroup.path
        assert len(cgroup.directories()) == len({os.path.dirname(d) for d in cgroup.directories()})
        assert read_metrics(cgroup).ByteSize() > 0
        with pytest.raises(AlreadyExists):
            make_cgroup(cgroup)
    finally:
        await kill_all(cgroup, 5)
    assert await process.wait() == -9
    make_cgroup(cgroup)


def test_limits_are_what_the_kernel_says_afterwards_and_can_be_changed(cgroup: Cgroup) -> None:
    for memory_mib, pid_limit in ((64, 10), (128, 20), (32, 5)):
        limits = {
            "memory": {"limit": memory_mib * MIB, "swap": memory_mib * MIB},
            "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"},
            "pids": {"limit": pid_limit},
        }
        apply_limits(cgroup, limits)
        assert value(cgroup, "memory.limit_in_bytes", "memory.max") == str(memory_mib * MIB)
        assert value(cgroup, "pids.max", "pids.max") == str(pid_limit)
    assert value(cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"
    assert value(cgroup, "cpuset.cpus", "cpuset.cpus") == "0"


def test_what_the_kernel_refuses_is_named(cgroup: Cgroup) -> None:
    with pytest.raises(InvalidArgument, match=r"cpus.*9999"):
        apply_limits(cgroup, {"cpu": {"cpus": "9999"}})


async def test_what_is_frozen_stands_still_until_it_is_thawed(cgroup: Cgroup) -> None:
    process = await counting(cgroup)
    assert process.stdout is not None
    try:
        await set_frozen(cgroup, True)
        await asyncio.sleep(0.05)
        while True:
            try:
                await asyncio.wait_for(process.stdout.readline(), 0.1)
            except TimeoutError:
                break
        await set_frozen(cgroup, False)
        assert await asyncio.wait_for(process.stdout.readline(), 20)
    finally:
        await kill_all(cgroup, 5)
        await process.wait()


async def test_freezing_what_is_gone_is_an_error(cgroup: Cgroup) -> None:
    remove_leaf(cgroup)
    with pytest.raises(OSError):
        await set_frozen(cgroup, True)
