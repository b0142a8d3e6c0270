"""Port forwarding: what connects to localhost in the pod's namespace reaches the same port of the guest.

An engine dials localhost in the namespace that it has given the pod (engine contract section 2.4), where nobody
listens: the pod's processes are in the guest. So all connections over its loopback device are redirected to a
listener of ours, which learns the port that was meant and opens it through the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from common.accepting import Acceptor
from common.errors import SandboxdError
from common.linux import nftables
from common.linux.netns import Netlink, in_netns
from common.log import get_logger
from vmm.guest.client import GuestClient

_TABLE: Final = "sandboxd"
_FAMILIES: Final = (
    (nftables.IPV4, socket.AF_INET, "127.0.0.1", socket.SOL_IP),
    (nftables.IPV6, socket.AF_INET6, "::1", socket.IPPROTO_IPV6),
)
_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h, and the same in linux/netfilter_ipv6/ip6_tables.h
_BACKLOG: Final = 16
_OPEN_TIMEOUT_S: Final = 10.0
_COPY_BYTES: Final = 64 << 10
_ABSENT: Final = frozenset(
    {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ENOENT, errno.EOPNOTSUPP}
)

log = get_logger()


class PortForward:
    """The listeners in one pod's namespace, and the connections that they have accepted."""

    __slots__ = ("_acceptors", "_guest", "_netns_path", "_pumps", "_tasks")

    def __init__(self, netns_path: str, guest: GuestClient) -> None:
        self._netns_path = netns_path
        self._guest = guest
        self._acceptors: list[Acceptor] = []
        self._pumps: set[_Pump] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Listen, in place of an earlier daemon. Where the kernel cannot redirect there is no forwarding."""
        try:
            found = in_netns(self._netns_path, _listen)
        except OSError as error:
            log.warning("port_forward.unavailable", netns=self._netns_path, error=error)
            return
        for listener, level in found:
            self._acceptors.append(Acceptor(listener, partial(self._accept, level)))

    def close(self) -> None:
        """Stop listening and end all connections. Idempotent."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for task in self._tasks:
            task.cancel()
        for pump in list(self._pumps):
            pump.close()
        if os.path.exists(self._netns_path):
            with contextlib.suppress(OSError):
                in_netns(self._netns_path, _forget)

    def _accept(self, level: int, sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(sock, level))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, level: int) -> None:
        try:
            address = sock.getsockopt(level, _SO_ORIGINAL_DST, 28)
            (port,) = struct.unpack_from(">H", address, 2)
            other = await self._guest.open_port(port, _OPEN_TIMEOUT_S)
        except (SandboxdError, OSError) as error:
            log.debug("port_forward.refused", error=error)
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        self._pumps.add(_Pump(sock, other, self._pumps.discard))


def _listen() -> list[tuple[socket.socket, int]]:
    _forget()
    found: list[tuple[socket.socket, int]] = []
    with Netlink(nftables.NETLINK_NETFILTER) as kernel:
        for family, address_family, loopback, level in _FAMILIES:
            listener = socket.socket(
                address_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                listener.bind((loopback, 0))
                listener.listen(_BACKLOG)
                kernel.tell(nftables.redirect_loopback(_TABLE, family, listener.getsockname()[1]))
            except OSError as error:
                listener.close()
                if error.errno in _ABSENT and found:
                    continue  # a namespace without IPv6
                for other, _ in found:
                    other.close()
                raise
            found.append((listener, level))
    return found


def _forget() -> None:
    with Netlink(nftables.NETLINK_NETFILTER) as kernel:
        for family in (nftables.IPV4, nftables.IPV6):
            with contextlib.suppress(OSError):
                kernel.tell(nftables.delete_table(_TABLE, family))


class _Pump:
    """Two connected sockets, each of which gets what the other sends, through the kernel; the end of one ends both."""

    __slots__ = ("_directions", "_on_end")

    def __init__(self, one: socket.socket, other: socket.socket, on_end: Callable[[_Pump], None]) -> None:
        self._on_end = on_end
        self._directions = [_Direction(one, other, self.close), _Direction(other, one, self.close)]

    def close(self) -> None:
        """End both."""
        for direction in self._directions:
            direction.close()
        self._on_end(self)


class _Direction:
    """From one socket to another through a pipe, which is what splice(2) needs."""

    __slots__ = ("_end", "_held", "_loop", "_pipe", "_sink", "_source")

    def __init__(self, source: socket.socket, sink: socket.socket, end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._end = source, sink, end
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._held = 0
        self._loop.add_reader(source, self._carry)

    def close(self) -> None:
        """Close the socket that is read from, and the pipe."""
        if self._source.fileno() >= 0:
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._source)
            self._source.close()
            for fd in self._pipe:
                os.close(fd)

    def _carry(self) -> None:
        try:
            moved = os.splice(self._source.fileno(), self._pipe[1], _COPY_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        except OSError:
            moved = 0
        if not moved:
            self._end()
            return
        self._held += moved
        self._loop.remove_reader(self._source)
        self._pass_on()

    def _pass_on(self) -> None:
        try:
            while self._held:
                self._held -= os.splice(
                    self._pipe[0], self._sink.fileno(), self._held, flags=os.SPLICE_F_NONBLOCK
                )
        except BlockingIOError:
            self._loop.add_writer(self._sink, self._go_on)
            return
        except OSError:
            self._end()
            return
        self._loop.add_reader(self._source, self._carry)

    def _go_on(self) -> None:
        self._loop.remove_writer(self._sink)
        self._pass_on()
