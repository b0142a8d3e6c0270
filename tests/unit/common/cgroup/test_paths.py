"""linux.cgroupsPath in both forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cgroup.paths import CgroupsPath, expand_slice, parse_cgroups_path
from common.errors import InvalidArgument


@pytest.mark.parametrize(
    ("value", "path", "systemd"),
    [
        ("/k8s.io/abc", "/k8s.io/abc", False),
        ("k8s.io/abc", "/k8s.io/abc", False),
        ("//kubepods//burstable/pod1/./abc/", "/kubepods/burstable/pod1/abc", False),
        ("/a:b:c", "/a:b:c", False),
        ("kubepods-burstable-pod1.slice:cri-containerd:abc",
         "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
 True),
        (":cri-containerd:abc", "/system.slice/cri-containerd-abc.scope", True),
        ("-.slice::abc", "/abc.scope", True),
    ],
)  # fmt: skip
def test_both_forms_give_the_path_below_the_hierarchy(value: str, path: str, systemd: bool) -> None:
    assert parse_cgroups_path(value) == CgroupsPath(path, systemd)


@pytest.mark.parametrize(
    "value",
    ["", "/", "//.", "/a/../b", "..", "/a\0b", "x.slice:p:", "x.slice:p/q:id", "x.slice:p:../id", "x:p:id",
     "a/b.slice:p:id", "-a.slice:p:id", "a--b.slice:p:id", ".slice:p:id"],
)  # fmt: skip
def test_what_leads_elsewhere_or_is_no_unit_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_cgroups_path(value)


def test_each_dash_of_a_slice_is_one_level() -> None:
    assert expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


@given(st.text(max_size=50))
def test_any_text_gives_a_path_below_the_root_or_is_refused(value: str) -> None:
    try:
        path = parse_cgroups_path(value).path
    except InvalidArgument:
        return
    assert path.startswith("/") and len(path) > 1
    assert ".." not in path.split("/")
