"""Frames over a raw non-blocking unix stream socket: peek one whole, consume exactly it, write one per
send().

Nothing that was not yet taken care of leaves the kernel: no read-ahead, and a frame is consumed only after
`_examine` accepted it. Three cases differ from "the frame is there":

* The rest is still on its way (Go writes frames above 4 KiB in two pieces). The bytes stay in the socket, and
  because a level-triggered loop would spin on them, the socket moves to an edge-triggered epoll of its own
  until the frame is whole. poll(2) on unix sockets ignores SO_RCVLOWAT, so that cannot do it.
* The frame may not fit. What an unread unix socket holds is bounded by the sender's SO_SNDBUF, which the
  reader neither knows nor sets, so above `PEEK_SIZE`, or when the rest of a frame is `REST_TIMEOUT_S` late,
  it is consumed piece by piece into a buffer; every piece is reported to `_partial` first.
* It is oversized: the data is consumed and thrown away.

One frame is one send(). The kernel takes up to 32 KiB on a unix socket whole or not at all; what it does not
take is queued, up to a limit per connection beyond which a peer that does not read is given up. A larger frame may
be spilled to a memfd and is sent from there: the kernel counts in the memfd's offset what has gone, so that whoever
holds the memfd next goes on in the right place.

The buffers into which sockets are peeked are shared: use the package from one thread of a process.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from common.ttrpc._connection import Connection
from common.ttrpc._errors import ConnectionLost, ProtocolError
from common.ttrpc._frames import HEADER, HEADER_SIZE, Frame, FrameBuffer, OversizedFrame

PEEK_SIZE: Final = 64 << 10
FRAMES_PER_WAKEUP: Final = 64
PIECES_PER_WAKEUP: Final = 8
REST_TIMEOUT_S: Final = 0.5
DRAIN_ABOVE: Final = 256 << 10
ATOMIC_SIZE: Final = 32 << 10

_peeked: Final = bytearray(PEEK_SIZE)
_peeked_view: Final = memoryview(_peeked)
_discarded: Final = bytearray(PEEK_SIZE)
_no_piece: Final = memoryview(b"")


class _Rest:
    """The wait for the rest of a frame: an edge-triggered epoll around one socket, and a time limit."""

    __slots__ = ("epoll", "timer")

    def __init__(self, epoll: select.epoll, timer: asyncio.TimerHandle) -> None:
        self.epoll = epoll
        self.timer = timer


class Spilled:
    """A frame in a memfd; owns it. The kernel keeps the offset."""

    __slots__ = ("_fd", "_left", "begun")

    def __init__(self, fd: int) -> None:
        gone = os.lseek(fd, 0, os.SEEK_CUR)
        self._fd = fd
        self._left = os.fstat(fd).st_size - gone
        self.begun = gone > 0

    def __len__(self) -> int:
        return self._left

    def send(self, sock: socket.socket) -> int:
        sent = os.sendfile(sock.fileno(), self._fd, None, self._left)
        self._left -= sent
        return sent

    def close(self) -> None:
        os.close(self._fd)


class FrameSocket:
    """One connected socket. Subclasses say what frames mean, through the five hooks at the end."""

    __slots__ = (
        "_closed",
        "_codec",
        "_drain_waiters",
        "_large",
        "_loop",
        "_queue_limit",
        "_rest",
        "_sock",
        "_unsent",
        "_unsent_size",
    )

    def __init__(
        self, sock: socket.socket, codec: Connection, loop: asyncio.AbstractEventLoop, queue_limit: int
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._codec = codec
        self._loop = loop
        self._queue_limit = queue_limit
        self._closed = False
        self._rest: _Rest | None = None
        self._large: FrameBuffer | None = None
        self._unsent: deque[tuple[memoryview | Spilled, int]] | None = None
        self._unsent_size = 0
        self._drain_waiters: list[asyncio.Future[None]] | None = None
        loop.add_reader(sock, self._on_readable)

    @property
    def closed(self) -> bool:
        return self._closed

    def _close(self, reason: Exception | None) -> None:
        """Close the socket and tell the subclass; idempotent. `reason` is None for an orderly end."""
        if self._closed:
            return
        self._closed = True
        self._end_waiting_for_rest()
        self._loop.remove_reader(self._sock)
        if self._unsent is not None:
            self._loop.remove_writer(self._sock)
            for rest, _report in self._unsent:
                if type(rest) is Spilled:
                    rest.close()
            self._unsent = None
        self._sock.close()
        self._large = None
        self._wake_drained()
        self._lost(reason)

    # ── reading ────────────────────────────────────────────────────────────────────────────────

    def _on_readable(self) -> None:
        if self._large is not None:
            self._read_pieces(self._large)
            return
        size = self._peek(PEEK_SIZE)
        if size <= 0:
            return
        start = 0
        for _ in range(FRAMES_PER_WAKEUP):
            if size - start < HEADER_SIZE:
                break
            data_size, stream_id, frame_type, flags = HEADER.unpack_from(_peeked, start)
            end = start + HEADER_SIZE + data_size
            if end - start > PEEK_SIZE:
                self._stop_peeking()
                return
            if end > size:
                break
            self._end_waiting_for_rest()
            frame = Frame(stream_id, frame_type, flags, bytes(_peeked_view[start + HEADER_SIZE : end]))
            self._take(frame, end - start)
            if self._closed:
                return
            start = end
        else:
            return
        if start < size < PEEK_SIZE:
            self._wait_for_rest()

    def _peek(self, size: int) -> int:
        """Return how many bytes are in `_peeked` now; 0 or less: none, or the connection ended."""
        try:
            count = self._sock.recv_into(_peeked, size, socket.MSG_PEEK)
        except BlockingIOError:
            return -1
        except OSError as error:
            self._close(error)
            return -1
        if count == 0:
            inside = self._large is not None and not self._large.empty
            self._close(ConnectionLost("the peer closed the connection inside a frame") if inside else None)
        return count

    def _take(self, frame: Frame | OversizedFrame, unconsumed: int) -> None:
        try:
            examined = self._examine(frame)
        except ProtocolError as error:
            self._close(error)
            return
        if unconsumed and self._acts_first(examined):
            self._act(examined)
            if not self._closed:
                self._acted(frame, examined)
                self._consume(unconsumed)
            return
        if unconsumed and not self._consume(unconsumed):
            return
        self._act(examined)

    def _consume(self, size: int) -> bool:
        try:
            while size:  # the kernel may stop early where a peer attached descriptors
                size -= self._sock.recv_into(_discarded, size)
        except OSError as error:
            self._close(error)
            return False
        return True

    def _read_pieces(self, buffer: FrameBuffer) -> None:
        for _ in range(PIECES_PER_WAKEUP):
            size = self._peek(min(buffer.missing, PEEK_SIZE))
            if size <= 0:
                return
            piece = _peeked_view[:size]
            if not buffer.skipping:
                try:
                    self._partial(piece)
                except Exception as error:
                    self._close(error)
                    return
            if not self._consume(size):
                return
            buffer.feed(piece)
            self._take_collected(buffer)
            if self._large is None:
                return

    def _take_collected(self, buffer: FrameBuffer) -> None:
        frame = buffer.next_frame()
        if buffer.empty:
            self._large = None
        if frame is not None:
            self._take(frame, 0)
            if not self._closed:
                self._partial(_no_piece)

    def _resume(self, pieces: Sequence[bytes]) -> None:
        """Go on with a frame of which an earlier process has recorded these pieces and consumed all, but
        perhaps not the last: then it is still there.
        """
        if not pieces:
            return
        buffer = self._large = FrameBuffer()
        for piece in pieces:
            buffer.feed(piece)
        last = pieces[-1]
        if self._peek(len(last)) == len(last) and _peeked_view[: len(last)] == last:
            self._consume(len(last))
        if not self._closed:
            self._take_collected(buffer)

    # ── waiting for the rest of a frame ────────────────────────────────────────────────────────

    def _wait_for_rest(self) -> None:
        if self._rest is not None:
            return
        try:
            epoll = select.epoll()
        except OSError:  # no descriptor left: reading on is better than spinning
            self._stop_peeking()
            return
        # Registering reports the bytes that are there once more, so what came since the peek is not missed.
        epoll.register(self._sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self._loop.remove_reader(self._sock)
        self._loop.add_reader(epoll.fileno(), self._on_edge)
        self._rest = _Rest(epoll, self._loop.call_later(REST_TIMEOUT_S, self._stop_peeking))

    def _on_edge(self) -> None:
        rest = self._rest
        assert rest is not None
        ended = any(mask & (select.EPOLLRDHUP | select.EPOLLHUP) for _, mask in rest.epoll.poll(0))
        self._on_readable()
        if ended and self._rest is rest:
            self._close(ConnectionLost("the peer closed the connection inside a frame"))

    def _end_waiting_for_rest(self) -> None:
        rest = self._rest
        if rest is None:
            return
        self._rest = None
        rest.timer.cancel()
        self._loop.remove_reader(rest.epoll.fileno())
        rest.epoll.close()
        if not self._closed:
            self._loop.add_reader(self._sock, self._on_readable)

    def _stop_peeking(self) -> None:
        """Consume the frame at hand piece by piece; the loop calls `_on_readable` for the pieces."""
        self._end_waiting_for_rest()
        self._large = FrameBuffer()

    # ── writing ────────────────────────────────────────────────────────────────────────────────

    def _write(self, frame: bytes, report: int = 0, stream_id: int = 0) -> None:
        """Send a frame, or queue what the kernel does not take; `_sent(report)` follows when all of it is
        gone.
        """
        if self._closed:
            return
        rest: memoryview | Spilled = memoryview(frame)
        if len(frame) > ATOMIC_SIZE and stream_id and (fd := self._spill(stream_id, frame)) >= 0:
            rest = Spilled(fd)
        self._enqueue(rest, report)

    def _enqueue(self, rest: memoryview | Spilled, report: int) -> None:
        if self._unsent is None:
            sent = self._send(rest)
            if sent < 0:
                return
            rest = self._after(rest, sent)
            if not len(rest):
                self._end(rest, report)
                return
            self._unsent = deque()
            self._loop.add_writer(self._sock, self._on_writable)
        self._unsent.append((rest, report))
        self._unsent_size += len(rest)
        if self._unsent_size > self._queue_limit:
            self._close(ConnectionLost(f"the peer left {self._unsent_size} bytes unread"))

    def _send(self, data: memoryview | Spilled) -> int:
        """Return how many bytes the kernel took; -1: the connection is closed."""
        try:
            if isinstance(data, Spilled):
                return data.send(self._sock)
            return self._sock.send(data, socket.MSG_NOSIGNAL) if data else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            if type(data) is Spilled and self._unsent is None:
                data.close()
            self._close(error)
            return -1

    @staticmethod
    def _after(rest: memoryview | Spilled, sent: int) -> memoryview | Spilled:
        return rest[sent:] if isinstance(rest, memoryview) else rest

    def _end(self, rest: memoryview | Spilled, report: int) -> None:
        if type(rest) is Spilled:
            rest.close()
        if report:
            self._sent(report)

    def _on_writable(self) -> None:
        queue = self._unsent
        assert queue is not None
        while queue:
            rest, report = queue[0]
            sent = self._send(rest)
            if sent < 0:
                return
            self._unsent_size -= sent
            rest = self._after(rest, sent)
            if len(rest):
                queue[0] = (rest, report)
                break
            queue.popleft()
            self._end(rest, report)
        if not queue:
            self._unsent = None
            self._loop.remove_writer(self._sock)
        if self._unsent_size <= DRAIN_ABOVE:
            self._wake_drained()

    async def _drain(self) -> None:
        """Wait until the queue is short; for those who produce many frames. Returns at once when closed."""
        while self._unsent_size > DRAIN_ABOVE and not self._closed:
            waiter: asyncio.Future[None] = self._loop.create_future()
            if self._drain_waiters is None:
                self._drain_waiters = []
            self._drain_waiters.append(waiter)
            await waiter

    def _wake_drained(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def send_data(self, stream_id: int, payload: bytes | None, *, close: bool) -> None:
        """Write a Data frame; raise ConnectionLost or LocalProtocolError if it cannot be sent."""
        if self._closed:
            raise ConnectionLost("the connection is closed")
        self._write(self._codec.send_data(stream_id, payload, close=close))

    # ── hooks ──────────────────────────────────────────────────────────────────────────────────

    def _examine(self, frame: Frame | OversizedFrame) -> Any:
        """Look at a frame that is still in the socket; what this returns is handed to `_act`."""
        raise NotImplementedError

    def _act(self, examined: Any) -> None:
        """The frame is consumed: do what it asks for."""
        raise NotImplementedError

    def _lost(self, reason: Exception | None) -> None:
        """The connection was just closed, by either side."""
        raise NotImplementedError

    def _acts_first(self, examined: Any) -> bool:
        """Whether to act before the frame is consumed, so that a death in between leaves it in the socket."""
        return False

    def _acted(self, frame: Frame | OversizedFrame, examined: Any) -> None:
        """What was asked for was done or begun, and the frame is about to be consumed."""

    def _spill(self, stream_id: int, frame: bytes) -> int:
        """Return a memfd that holds a large frame, or -1."""
        return -1

    def _partial(self, piece: memoryview) -> None:
        """A piece of a frame that cannot be peeked whole is about to be consumed."""

    def _sent(self, report: int) -> None:
        """A frame written with this `report` is in the kernel as a whole."""
