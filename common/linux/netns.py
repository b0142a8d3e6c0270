"""Work inside a network namespace: functions that run there, rtnetlink requests, tap devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TypeVar

from common.linux import _libc, netlink
from common.linux.flags import MS_BIND
from common.linux.mounts import unmount_stack
from common.linux.namespaces import enter
from common.linux.netlink import Answer, End, Refusal

_LOOPBACK = 1
"""The index of the first device of every namespace."""
_RECEIVE_BYTES = 256 << 10
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")

Result = TypeVar("Result")


def in_netns(path: str, function: Callable[[], Result]) -> Result:
    """Run a function, which should not take long, in a network namespace. Raises OSError with the path."""

    def run() -> Result:
        enter(path, _libc.CLONE_NEWNET)
        return function()

    return _libc.run_in_own_thread(run)


def make_netns(path: str) -> None:
    """Make a network namespace whose loopback device is up, and keep it mounted at `path`, a new file.

    Raises OSError; then there is neither. Source: ip-netns(8), network_namespaces(7).
    """
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def make() -> None:
        _libc.unshare(_libc.CLONE_NEWNET)
        with Netlink() as link:
            link.ask(partial(netlink.set_link, index=_LOOPBACK, up=True))
        _libc.mount("/proc/thread-self/ns/net", path, None, MS_BIND, None)

    try:
        _libc.run_in_own_thread(make)
    except BaseException:
        os.unlink(path)
        raise


def remove_netns(path: str) -> None:
    """Let go of a namespace that is kept at `path`, and remove the file; harmless where there is none."""
    unmount_stack(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def open_tap(name: str) -> int:
    """Make a tap device and return its descriptor, with whose last copy it vanishes.

    Raises OSError, EBUSY if the name is taken. Source: kernel, Documentation/networking/tuntap.rst.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # With the header of virtio-net, segments stay whole between guest and host.
        request = _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Netlink:
    """A blocking netlink socket of the namespace in which it was made; `with` it."""

    __slots__ = ("_sequences", "_sock")

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequences = count(1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def tell(self, messages: Sequence[Callable[[int], bytes]]) -> None:
        """Send a batch whose messages are all to be acknowledged but the first and the last.

        Raises OSError as the kernel refuses one.
        """
        first = next(self._sequences)
        for _ in messages[1:]:
            next(self._sequences)
        self._sock.send(b"".join(message(first + n) for n, message in enumerate(messages)))
        waiting = len(messages) - 2
        while waiting > 0:
            for answer in netlink.parse(self._sock.recv(_RECEIVE_BYTES)):
                if isinstance(answer, Refusal):
                    if answer.errno:
                        raise OSError(answer.errno, os.strerror(answer.errno))
                    waiting -= 1

    def ask(self, message: Callable[[int], bytes]) -> list[Answer]:
        """Send what `message` makes of a sequence number and return the answers.

        Raises OSError as the kernel refuses it.
        """
        sequence = next(self._sequences)
        self._sock.send(message(sequence))
        answers: list[Answer] = []
        while True:
            for answer in netlink.parse(self._sock.recv(_RECEIVE_BYTES)):
                if isinstance(answer, Refusal):
                    if answer.errno:
                        raise OSError(answer.errno, os.strerror(answer.errno))
                    return answers
                if isinstance(answer, End):
                    return answers
                answers.append(answer)
