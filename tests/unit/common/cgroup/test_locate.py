"""Finding cgroups from the texts of /proc, on v1, v2 and hybrid hosts."""

from __future__ import annotations

import os

import pytest

from common.cgroup.locate import UNIFIED, Hierarchies, Hierarchy, parse_membership, parse_mounts
from common.errors import NotFound

V2_MOUNTS = """\
24 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,xattr,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
90 31 0:32 /pod/a /srv/with\\040space rw,relatime - cgroup cgroup rw,memory
"""
HYBRID_MEMBERSHIP = """\
9:name=systemd:/pod/a
8:pids:/pod/a
5:cpu,cpuacct:/pod/a
4:memory:/pod/a
3:freezer:/
2:blkio:/pod/a
0::/
"""


def test_a_v2_host_has_one_directory_for_every_controller() -> None:
    hierarchies = Hierarchies(parse_mounts(V2_MOUNTS))
    cgroup = hierarchies.cgroup(parse_membership("0::/kubepods.slice/cri-containerd-abc.scope\n"))
    assert hierarchies.unified and cgroup.unified
    for controller in ("memory", "cpu", ""):
        assert cgroup.directory(controller) == "/sys/fs/cgroup/kubepods.slice/cri-containerd-abc.scope"


def test_a_hybrid_host_counts_as_v1_with_one_directory_per_controller() -> None:
    hierarchies = Hierarchies(parse_mounts(HYBRID_MOUNTS))
    cgroup = hierarchies.cgroup(parse_membership(HYBRID_MEMBERSHIP))
    assert not cgroup.unified
    assert cgroup.path == "/pod/a"
    assert cgroup.directory("memory") == "/sys/fs/cgroup/memory/pod/a"
    assert cgroup.directory("cpu") == cgroup.directory("cpuacct") == "/sys/fs/cgroup/cpu,cpuacct/pod/a"
    assert cgroup.directory("name=systemd") == "/sys/fs/cgroup/systemd/pod/a"


def test_the_root_cgroup_and_unmounted_controllers_have_no_directory() -> None:
    cgroup = Hierarchies(parse_mounts(HYBRID_MOUNTS)).cgroup(parse_membership(HYBRID_MEMBERSHIP))
    assert cgroup.directory("freezer") is None
    assert cgroup.directory("blkio") is None
    root = Hierarchies(parse_mounts(V2_MOUNTS)).cgroup(parse_membership("0::/\n"))
    assert root.directory("memory") is None
    assert root.directories() == []


def test_the_mount_that_shows_most_counts() -> None:
    assert parse_mounts(HYBRID_MOUNTS)["memory"] == Hierarchy("/sys/fs/cgroup/memory", "/")


def test_a_mount_of_a_part_shows_only_what_is_below_it() -> None:
    hierarchies = Hierarchies({UNIFIED: Hierarchy("/sys/fs/cgroup", "/machine/c1")})
    assert hierarchies.cgroup({UNIFIED: "/machine/c1/pod"}).directory("memory") == "/sys/fs/cgroup/pod"
    assert hierarchies.cgroup({UNIFIED: "/machine/c10/pod"}).directory("memory") is None
    assert hierarchies.cgroup({UNIFIED: "/../outside"}).directory("memory") is None


def test_escaped_mount_points_are_decoded() -> None:
    text = r"90 31 0:32 / /srv/with\040space rw - cgroup2 cgroup2 rw" + "\n"
    assert parse_mounts(text)[UNIFIED].mount_point == "/srv/with space"


def test_a_membership_keeps_colons_of_the_path_and_drops_the_mark_of_removal() -> None:
    assert parse_membership("1:cpu,cpuacct:/a:b\n0::/x (deleted)\n") == {
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "": "/x",
    }


def test_a_process_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound):
        Hierarchies({}).locate(2**22 + 1)


def test_this_process_is_located() -> None:
    assert Hierarchies.read().locate(os.getpid()).path.startswith("/")


@pytest.mark.parametrize(
    ("cgroups_path", "own"),
    [
        ("/kubepods/pod1/c1", "/kubepods/pod1/c1"),
        ("system.slice:cri-containerd:c1", "/system.slice/cri-containerd-c1.scope"),
        ("/kubepods/pod1", None),
        ("/c1/other", None),
        ("/kubepods/c10", None),
        ("", None),
    ],
)
def test_only_a_cgroup_that_is_named_after_the_container_is_its_own(
    cgroups_path: str, own: str | None
) -> None:
    cgroup = Hierarchies({}).of_container(cgroups_path, "c1")
    assert (cgroup.path if cgroup else None) == own
