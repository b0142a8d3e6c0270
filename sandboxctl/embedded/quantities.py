"""Amounts, ports and volumes as operators write them: text to values.

Sources: Kubernetes API conventions, "Quantity"; the options -p and -v of docker-run(1).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Final

from common.errors import InvalidArgument
from sandboxctl.embedded.plan import Port, Volume

_BYTES: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]{0,2})")
_LOWEST_MEMORY_BYTES = 1 << 20


def parse_memory(text: str, what: str) -> int:
    """Return the bytes of "256Mi", "1G" or "1048576"; suffixes are Kubernetes', with powers of 1024 for a small "m" or
    "g", as docker has them.

    :raise InvalidArgument: it is malformed, or less than a MiB.
    """
    match = _AMOUNT.fullmatch(text)
    suffix = {"m": "Mi", "g": "Gi", "K": "k"}.get(match[2], match[2]) if match else ""
    if match is None or suffix not in _BYTES:
        raise InvalidArgument(f"{what}: {text[:40]!r} is no amount of memory such as 256Mi or 1G")
    amount = int(float(match[1]) * _BYTES[suffix])
    if amount < _LOWEST_MEMORY_BYTES:
        raise InvalidArgument(f"{what}: {text[:40]!r} is less than 1Mi, in which nothing runs")
    return amount


def parse_cpus(text: str, what: str) -> int:
    """Return the thousandths of a CPU of "0.5", "2" or "250m". Raises InvalidArgument."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in ("", "m"):
        raise InvalidArgument(f"{what}: {text[:40]!r} is no number of CPUs such as 0.5 or 500m")
    millis = int(float(match[1]) * (1 if match[2] else 1000))
    if not millis:
        raise InvalidArgument(f"{what}: {text[:40]!r} is less than a thousandth of a CPU")
    return millis


def parse_port(text: str) -> Port:
    """Return what "[IP:]HOSTPORT:PORT[/tcp|udp|sctp]" says, an IPv6 address in brackets. Raises InvalidArgument."""
    ports, _, protocol = text.partition("/")
    address, host_port, port = _split_from_right(ports)
    host_ip = address.removeprefix("[").removesuffix("]")
    try:
        wanted = Port(int(host_port), int(port), protocol or "tcp", host_ip)
    except ValueError:
        raise InvalidArgument(f"-p {text[:60]!r} is not [IP:]HOSTPORT:PORT[/PROTOCOL]") from None
    return check_port(wanted)


def check_port(port: Port) -> Port:
    """Return a port that is one, with its address as it is usually written. Raises InvalidArgument."""
    if not (0 < port.host_port < 1 << 16 and 0 < port.container_port < 1 << 16):
        raise InvalidArgument(f"ports are between 1 and 65535, not {port.host_port}:{port.container_port}")
    if port.protocol not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f"{port.protocol[:20]!r} is no protocol of ports: tcp, udp and sctp are")
    if not port.host_ip:
        return port
    try:
        return dataclasses.replace(port, host_ip=str(ipaddress.ip_address(port.host_ip)))
    except ValueError:
        raise InvalidArgument(f"{port.host_ip[:60]!r} is no IP address") from None


def parse_volume(text: str) -> Volume:
    """Return what "SOURCE:DESTINATION[:ro|rw]" says, of which both are absolute paths. Raises InvalidArgument."""
    source, _, rest = text.partition(":")
    destination, _, access = rest.partition(":")
    if not source.startswith("/") or access not in ("", "ro", "rw"):
        raise InvalidArgument(f"-v {text[:200]!r} is not /PATH/HERE:/PATH/IN/CONTAINER[:ro]")
    return Volume(check_destination(destination), source, read_only=access == "ro")


def check_destination(path: str) -> str:
    """Return a path in a container where something can be mounted. Raises InvalidArgument."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or not any(parts) or "\0" in path:
        raise InvalidArgument(f"{path[:200]!r} is no absolute path in a container below its root")
    return path


def _split_from_right(text: str) -> tuple[str, str, str]:
    rest, _, port = text.rpartition(":")
    address, _, host_port = rest.rpartition(":")
    return address, host_port, port
