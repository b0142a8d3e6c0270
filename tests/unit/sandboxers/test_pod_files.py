"""The files that a pod's containers share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandboxers.pod_config import PodConfig
from sandboxers.pod_files import pod_files, resolv_conf, write_pod_files


def test_each_file_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    directory = str(tmp_path / "etc")
    written = write_pod_files(PodConfig("pod", hostname="web-0", dns_servers=["10.0.0.1"]), directory)
    assert written == pod_files(directory)
    assert set(written) == {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
    contents = {destination: Path(path).read_text() for destination, path in written.items()}
    assert contents["/etc/hostname"] == "web-0\n"
    assert contents["/etc/resolv.conf"] == "nameserver 10.0.0.1\n"
    assert contents["/etc/hosts"] == Path("/etc/hosts").read_text()


def test_containers_of_any_user_may_read_them(tmp_path: Path) -> None:
    old_mask = os.umask(0o077)
    try:
        written = write_pod_files(PodConfig("pod"), str(tmp_path / "etc"))
    finally:
        os.umask(old_mask)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in written.values()} == {0o644}


def test_without_settings_of_its_own_a_pod_has_the_hosts(tmp_path: Path) -> None:
    written = write_pod_files(PodConfig("pod"), str(tmp_path / "etc"))
    assert Path(written["/etc/hostname"]).read_text() == f"{os.uname().nodename}\n"
    host = Path("/etc/resolv.conf")
    expected = host.read_text() if host.exists() else ""
    assert Path(written["/etc/resolv.conf"]).read_text() == expected


def test_resolver_settings_stand_in_the_order_that_resolvers_expect() -> None:
    pod = PodConfig(
        "pod",
        dns_servers=["10.0.0.1", "fd00::1"],
        dns_searches=["a.svc", "b"],
        dns_options=["ndots:5", "edns0"],
    )
    assert resolv_conf(pod) == (
        "search a.svc b\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5 edns0\n"
    )
    assert resolv_conf(PodConfig("pod")) == ""


def test_files_of_an_earlier_pod_are_not_taken_over(tmp_path: Path) -> None:
    write_pod_files(PodConfig("pod"), str(tmp_path / "etc"))
    with pytest.raises(FileExistsError):
        write_pod_files(PodConfig("pod"), str(tmp_path / "etc"))
