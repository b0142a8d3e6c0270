"""The endpoint: HTTP/1.0 answers to `GET /metrics`, on asyncio's streams, for clients that may be anybody.

One request per connection; what a client can make the daemon hold is a line of headers and one answer, for a few
seconds, for a few clients at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from common.errors import FailedPrecondition
from common.log import get_logger
from common.transport.streams import listen_unix
from sandboxers.metrics.address import parse_address

_CLIENTS: Final = 8
_HEAD_BYTES: Final = 8 << 10
_TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 8
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

log = get_logger()


class Endpoint:
    """Serves a text that is made anew for each request."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> None:
        """Listen on "unix:///path", for root alone, or "tcp://host:port", host being a number.

        :raise FailedPrecondition: that is not possible, and why.
        """
        try:
            sock = _listening(address)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot serve metrics on {address}: {error}; change metrics.address"
            ) from error
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=_HEAD_BYTES)

    def close(self) -> None:
        """Listen no more; answers under way are cut off with the process."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= _CLIENTS:
                async with asyncio.timeout(_TIMEOUT_S):
                    writer.write(self._answer(await _read_request_line(reader)))
                    await writer.drain()
                    writer.write_eof()
                    # Closing what still has something to read would reset the connection, and the answer with it.
                    await reader.read(_HEAD_BYTES)
        except (TimeoutError, ValueError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it is too slow, speaks another language, or is gone
        finally:
            self._clients -= 1
            writer.transport.abort()

    def _answer(self, request_line: bytes) -> bytes:
        method, _, rest = request_line.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "only GET is served\n", b"GET")
        if path != b"/metrics":
            return _response("404 Not Found", "look at /metrics\n", method)
        try:
            text = self._text()
        except Exception as error:
            log.error("metrics.failed", error=error)
            return _response("500 Internal Server Error", "see the log of sandboxd\n", method)
        return _response("200 OK", text, method)


async def _read_request_line(reader: asyncio.StreamReader) -> bytes:
    """Return the first line of a request whose head has been read; raise ValueError if it is too long."""
    first = await reader.readuntil(b"\n")
    size, line = len(first), first
    while line not in (b"\r\n", b"\n"):
        line = await reader.readuntil(b"\n")
        size += len(line)
        if size > _HEAD_BYTES:
            raise ValueError("the head of the request is too long")
    return first.strip()


def _response(status: str, text: str, method: bytes) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.0 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else body)


def _listening(address: str) -> socket.socket:
    where = parse_address(address)
    if isinstance(where, str):
        return listen_unix(where)
    host, port = where
    # No name is looked up: that would take a thread.
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
