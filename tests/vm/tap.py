"""A tap device in a network namespace of its own, which goes with it, and what arrives there."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Self

from common.linux import _libc, netlink
from common.linux.netns import Netlink, open_tap

_NAME = "tap0"
_ETH_P_ALL = 3
_TIMEOUT_S = 30.0


class Tap:
    """`fd` is what a hypervisor gets; `with` it."""

    def __init__(self) -> None:
        self.fd, self._sniffer = _libc.run_in_own_thread(self._make)

    @staticmethod
    def _make() -> tuple[int, socket.socket]:
        _libc.unshare(_libc.CLONE_NEWNET)
        fd = open_tap(_NAME)
        with Netlink() as kernel:
            index = socket.if_nametoindex(_NAME)
            kernel.ask(lambda number: netlink.set_link(number, index, up=True))
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sniffer.bind((_NAME, _ETH_P_ALL))
        return fd, sniffer

    async def frame(self, is_wanted: Callable[[bytes], bool]) -> bytes:
        """Return the first frame from the guest that is wanted."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                frame = await asyncio.get_running_loop().sock_recv(self._sniffer, 65536)
                if is_wanted(frame):
                    return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sniffer.close()
        os.close(self.fd)
