"""Waiting until a descriptor can be read from or written to."""

from __future__ import annotations

import asyncio
import select
import socket


async def wait_readable(file: int | socket.socket) -> None:
    """Wait until there is something to read or to accept, or the end of the connection."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(file, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(file)


async def wait_writable(file: int | socket.socket) -> None:
    """Wait until a connection stands or has failed, or there is room to write."""
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(file, _set, writable)
    try:
        await writable
    finally:
        loop.remove_writer(file)


def has_input(fd: int) -> bool:
    """Tell whether reading would not wait: there is something to read, or an end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
