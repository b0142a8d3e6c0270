"""Amounts, ports and volumes as operators write them."""

from __future__ import annotations

import pytest

from common.errors import InvalidArgument
from sandboxctl.embedded.plan import Port, Volume
from sandboxctl.embedded.quantities import parse_cpus, parse_memory, parse_port, parse_volume


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("64Mi", 64 << 20), ("64m", 64 << 20), ("1G", 10**9), ("1.5Gi", 3 << 29), ("1048576", 1 << 20)],
)
def test_memory(text: str, size_bytes: int) -> None:
    assert parse_memory(text, "--memory") == size_bytes


@pytest.mark.parametrize("text", ["", "1k", "lots", "-1Gi", "1Zi", "1e9", "١Gi", "1Gi "])
def test_what_is_no_memory_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^--memory: "):
        parse_memory(text, "--memory")


@pytest.mark.parametrize(("text", "millis"), [("2", 2000), ("0.5", 500), ("250m", 250)])
def test_cpus(text: str, millis: int) -> None:
    assert parse_cpus(text, "--cpus") == millis


@pytest.mark.parametrize("text", ["0", "", "two", "-1", "1Mi", "0.0001"])
def test_what_is_no_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^--cpus: "):
        parse_cpus(text, "--cpus")


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Port(8080, 80)),
        ("127.0.0.1:53:53/udp", Port(53, 53, "udp", "127.0.0.1")),
        ("[::1]:8080:80/tcp", Port(8080, 80, "tcp", "::1")),
    ],
)
def test_ports(text: str, port: Port) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    "text", ["80", "0:80", "80:65536", "a:b", "1.2.3:80:80", "80:80/icmp", "", "-1:80", ":80"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_port(text)


def test_volumes() -> None:
    assert parse_volume("/a:/b") == Volume("/b", "/a")
    assert parse_volume("/a:/b/c:ro") == Volume("/b/c", "/a", read_only=True)


@pytest.mark.parametrize("text", ["/a", "a:/b", "/a:b", "/a:/", "/a:/b/../c", "/a:/b:rx", "name:/b", ""])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_volume(text)
