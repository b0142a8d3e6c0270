"""Only sysctls of a pod's own namespaces are accepted, in either spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.linux.sysctls import Kind, check_sysctls, namespace_of, sysctl_path


@pytest.mark.parametrize(
    ("key", "path", "kind"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward", Kind.NET),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding", Kind.NET),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", Kind.NET),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", Kind.IPC),
        ("kernel.msgmax", "kernel/msgmax", Kind.IPC),
        ("kernel.sem", "kernel/sem", Kind.IPC),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max", Kind.IPC),
        ("kernel.domainname", "kernel/domainname", Kind.UTS),
    ],
)
def test_a_namespaced_key_is_accepted(key: str, path: str, kind: Kind) -> None:
    assert sysctl_path(key) == path
    assert namespace_of(key) is kind


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern",
        "kernel.semaphore",
        "vm.overcommit_memory",
        "fs.file-max",
        "net",
        "",
        ".",
        "net..ipv4",
        "net/../kernel/core_pattern",
        "kernel/shm/../core_pattern",
        "/net/ipv4",
        "net.ipv4.",
        "net.IPV4.x",
        "net.a b",
        "net.a\n",
        "net.a\0",
    ],
)
def test_any_other_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        namespace_of(key)
    assert repr(key) in str(caught.value)


def test_a_key_of_a_namespace_shared_with_the_host_is_refused() -> None:
    check_sysctls({"kernel.sem": "1"}, {Kind.IPC})
    with pytest.raises(InvalidArgument, match=r"'net\.core\.somaxconn' is refused"):
        check_sysctls({"net.core.somaxconn": "1"}, {Kind.IPC})


@given(st.text())
def test_no_key_leads_out_of_the_sysctl_tree(key: str) -> None:
    try:
        path = sysctl_path(key)
    except InvalidArgument:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")
