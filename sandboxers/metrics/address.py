"""Where metrics are served: "unix:///path" or "tcp://host:port"."""

from __future__ import annotations

import contextlib

from common.config import socket_path


def parse_address(address: str) -> str | tuple[str, int]:
    """Return a path, or a host (a number, IPv4 or [IPv6]) and a port; raise ValueError, which says what is wrong."""
    scheme, separator, rest = address.partition("://")
    if scheme == "unix" and separator:
        if wrong := socket_path(rest):
            raise ValueError(f"{rest!r} {wrong}")
        return rest
    if scheme != "tcp" or not separator:
        raise ValueError(f"{address!r} is neither unix:///path nor tcp://host:port")
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port")
    import socket  # late: most configurations have no such address

    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return host, int(port)
    raise ValueError(f"{host!r} is no address: give a number, as 127.0.0.1 or [::1]")


def check_address(value: str) -> str:
    """Check for `option`: the value is an address, or empty."""
    try:
        if value:
            parse_address(value)
    except ValueError as error:
        return str(error)
    return ""
