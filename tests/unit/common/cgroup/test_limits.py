"""Limits of a specification, as what is written into which file of a cgroup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.cgroup import apply_limits
from common.cgroup.limits import make_cgroup
from common.cgroup.locate import UNIFIED, Cgroup, Hierarchies, Hierarchy
from common.errors import AlreadyExists, InvalidArgument

V1 = ("cpu", "cpuset", "memory", "pids")
RESOURCES = {
    "memory": {"limit": 1000, "swap": 3000, "reservation": 500},
    "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 7},
}


class Files:
    """A hierarchy of plain files, which a cgroup's directory has from the start, as the kernel makes them."""

    def __init__(self, root: Path, *, unified: bool) -> None:
        self.root = root
        controllers = (UNIFIED,) if unified else V1
        hierarchies = Hierarchies({name: Hierarchy(str(root / (name or "v2")), "/") for name in controllers})
        for name in controllers:
            (root / (name or "v2")).mkdir()
        self.cgroup: Cgroup = hierarchies.at("/pod/container")

    def prepare(self, *files: str) -> None:
        for file in files:
            path = self.root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def text(self, file: str) -> str:
        return (self.root / file).read_text()


@pytest.fixture
def v1(tmp_path: Path) -> Files:
    files = Files(tmp_path, unified=False)
    names = [f"memory.{name}_in_bytes" for name in ("limit", "memsw.limit", "soft_limit")]
    files.prepare(*(f"memory/pod/container/{name}" for name in names))
    files.prepare(*(f"cpu/pod/container/cpu.{name}" for name in ("shares", "cfs_period_us", "cfs_quota_us")))
    files.prepare(*(f"cpuset/pod/container/cpuset.{name}" for name in ("cpus", "mems")))
    files.prepare("pids/pod/container/pids.max")
    return files


@pytest.fixture
def v2(tmp_path: Path) -> Files:
    files = Files(tmp_path, unified=True)
    names = ("memory.max", "memory.low", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max")
    files.prepare(
        *(f"v2/pod/container/{name}" for name in (*names, "cpuset.cpus", "cpuset.mems", "io.weight"))
    )
    return files


def test_v1_has_a_file_per_limit(v1: Files) -> None:
    apply_limits(v1.cgroup, RESOURCES)
    # A plain file keeps what was written before where the new text is shorter: -1 was first.
    assert v1.text("memory/pod/container/memory.memsw.limit_in_bytes") == "3000"
    assert v1.text("memory/pod/container/memory.limit_in_bytes") == "1000"
    assert v1.text("memory/pod/container/memory.soft_limit_in_bytes") == "500"
    assert v1.text("cpu/pod/container/cpu.shares") == "512"
    assert v1.text("cpu/pod/container/cpu.cfs_quota_us") == "20000"
    assert v1.text("cpu/pod/container/cpu.cfs_period_us") == "50000"
    assert v1.text("cpuset/pod/container/cpuset.cpus") == "0"
    assert v1.text("pids/pod/container/pids.max") == "7"


def test_v2_counts_swap_without_memory_and_shares_as_weight(v2: Files) -> None:
    apply_limits(v2.cgroup, {**RESOURCES, "unified": {"io.weight": "50"}})
    for name, text in {
        "memory.max": "1000",
        "memory.low": "500",
        "memory.swap.max": "2000",
        "cpu.weight": "20",
        "cpu.max": "20000 50000",
        "pids.max": "7",
        "cpuset.cpus": "0",
        "io.weight": "50",
    }.items():
        assert v2.text(f"v2/pod/container/{name}") == text


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, "1"), (1024, "39"), (262144, "10000"), (1 << 40, "10000")]
)
def test_shares_and_weights_span_the_same_range(v2: Files, shares: int, weight: str) -> None:
    apply_limits(v2.cgroup, {"cpu": {"shares": shares}})
    assert v2.text("v2/pod/container/cpu.weight") == weight


def test_no_limit_is_written_as_such(v2: Files) -> None:
    apply_limits(v2.cgroup, {"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}})
    assert v2.text("v2/pod/container/memory.max") == "max"
    assert v2.text("v2/pod/container/pids.max") == "max"
    assert v2.text("v2/pod/container/cpu.max") == "max 100000"


def test_a_kernel_that_accounts_no_swap_needs_no_limit_of_it(v1: Files) -> None:
    (v1.root / "memory/pod/container/memory.memsw.limit_in_bytes").unlink()
    apply_limits(v1.cgroup, RESOURCES)
    assert v1.text("memory/pod/container/memory.limit_in_bytes") == "1000"


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": [1]},
        {"memory": {"limit": "1G"}},
        {"memory": {"limit": True}},
        {"cpu": {"cpus": 5}},
        {"unified": {"../escape": "1"}},
        {"unified": {"memory.high": 1}},
        {"unified": {"memory.frobnicate": "1"}},
    ],
)
def test_malformed_limits_are_refused(v2: Files, resources: Any) -> None:
    with pytest.raises(InvalidArgument):
        apply_limits(v2.cgroup, resources)
    assert not (v2.root / "v2/pod/escape").exists()


def test_a_cgroup_with_processes_is_somebody_elses(v2: Files) -> None:
    v2.prepare("v2/pod/cgroup.procs", "v2/pod/container/cgroup.procs")
    make_cgroup(v2.cgroup)
    (v2.root / "v2/pod/container/cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(AlreadyExists, match="/pod/container"):
        make_cgroup(v2.cgroup)


def test_missing_parents_are_made_and_controllers_handed_down(tmp_path: Path) -> None:
    files = Files(tmp_path, unified=True)
    files.prepare("v2/cgroup.subtree_control", "v2/cgroup.controllers")
    (tmp_path / "v2/cgroup.controllers").write_text("cpu memory pids rdma\n")
    make_cgroup(files.cgroup)
    assert (tmp_path / "v2/pod/container").is_dir()
    # One word at a time, so that one that cannot be had does not keep the others away.
    assert files.text("v2/cgroup.subtree_control").startswith("+")
    assert "rdma" not in files.text("v2/cgroup.subtree_control")


def test_a_v1_cpuset_begins_with_what_its_parent_has(tmp_path: Path) -> None:
    files = Files(tmp_path, unified=False)
    for level in ("cpuset", "cpuset/pod", "cpuset/pod/container"):
        files.prepare(*(f"{level}/{name}" for name in ("cgroup.procs", "cpuset.cpus", "cpuset.mems")))
    for name in V1:
        (tmp_path / name / "pod/container").mkdir(parents=True, exist_ok=True)
    (tmp_path / "cpuset/cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset/cpuset.mems").write_text("0\n")
    make_cgroup(files.cgroup)
    for level in ("pod", "pod/container"):
        assert files.text(f"cpuset/{level}/cpuset.cpus") == "0-3"
        assert files.text(f"cpuset/{level}/cpuset.mems") == "0"
