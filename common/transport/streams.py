"""What transports share: unix sockets by path, and a line that comes before other bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

from common.readiness import wait_readable

_CONNECT_RETRY_S = 0.01
_BACKLOG = 128


async def connect_unix(path: str, timeout_s: float) -> socket.socket:
    """Return a connected, non-blocking unix stream socket.

    :raise OSError: nobody listens.
    :raise TimeoutError: the backlog stays full.
    """
    sock = unix_socket()
    try:
        async with asyncio.timeout(timeout_s):
            await connect_to(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def unix_socket() -> socket.socket:
    """Return a non-blocking unix stream socket."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


async def connect_to(sock: socket.socket, path: str) -> None:
    """Connect a non-blocking unix socket, as soon as there is room in the backlog.

    :raise OSError: nobody listens.
    """
    # A full backlog is EAGAIN, and no event announces that there is room (unix(7)).
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            await asyncio.sleep(_CONNECT_RETRY_S)


def listen_unix(path: str) -> socket.socket:
    """Return a listening, non-blocking socket of mode 0600, in place of another socket at this path.

    :raise OSError: something else is there, which the error names.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    sock = unix_socket()
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.umask(mask)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def receive_line(sock: socket.socket, limit_bytes: int) -> bytes:
    """Receive one line and return it without its end; what follows stays in the socket.

    :raise ConnectionError: the peer closed the connection, or the line is longer than the limit.
    """
    line = b""
    while True:
        await wait_readable(sock)
        seen = sock.recv(limit_bytes, socket.MSG_PEEK)
        end = seen.find(b"\n") + 1
        taken = sock.recv(end or len(seen))
        line += taken
        if end:
            return line[:-1]
        if not taken or len(line) >= limit_bytes:
            raise ConnectionResetError("the connection ended, or its first line is too long")
