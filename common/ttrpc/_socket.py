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

A frame of up to 32 KiB is one send(), which the kernel takes on a unix socket whole or not at all; what it does not
take is queued, up to a limit per connection beyond which a peer that does not read is given up. A larger frame may
be spilled to a memfd and is sent from there: the kernel counts in the memfd's offset what has gone, so that whoever
holds the memfd next goes on in the right place.

The buffers into which sockets are peeked are shared: use the package from one thread of a process.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from common.ttrpc._connection import Connection
from common.ttrpc._errors import ConnectionLost, ProtocolError, RemoteProtocolError
from common.ttrpc._frames import HEADER, HEADER_SIZE, Frame, FrameBuffer, OversizedFrame
from common.ttrpc._marks import Spilled, left_to_skip, mark_piece, mark_skip, unmark, unread_of_piece

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


class _Pieces(FrameBuffer):
    """A frame that is consumed piece by piece; `count` of them were recorded."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0


class FrameSocket:
    """One connected socket. Subclasses say what frames mean, through the hooks at the end."""

    __slots__ = (
        "_closed",
        "_codec",
        "_drain_waiters",
        "_large",
        "_loop",
        "_paused",
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
        self._paused = False
        self._rest: _Rest | None = None
        self._large: _Pieces | None = None
        self._unsent: deque[tuple[memoryview | Spilled, int]] | None = None
        self._unsent_size = 0
        self._drain_waiters: list[asyncio.Future[None]] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    def start_reading(self) -> None:
        """Let the event loop read, from now on; does nothing when closed already, or paused."""
        if not self._closed and not self._paused:
            self._loop.add_reader(self._sock, self._on_readable)

    def _close(self, reason: Exception | None) -> None:
        """Close the socket and tell the subclass; idempotent. `reason` is None for an orderly end."""
        if self._closed:
            return
        self._closed = True
        self._end_waiting_for_rest()
        self._loop.remove_reader(self._sock)
        if self._unsent is not None:
            self._loop.remove_writer(self._sock)
            queue, self._unsent = self._unsent, None
            for rest, _report in queue:
                self._end(rest, 0)
        self._sock.close()
        self._large = None
        self._wake_drained()
        self._lost(reason)

    # ── reading ────────────────────────────────────────────────────────────────────────────────

    def _pause(self) -> None:
        """Leave in the kernel what arrives from now on; idempotent."""
        if not self._paused and not self._closed:
            self._end_waiting_for_rest()
            self._loop.remove_reader(self._sock)
            self._paused = True

    def _unpause(self) -> None:
        """Read on; idempotent."""
        if self._paused and not self._closed:
            self._loop.add_reader(self._sock, self._on_readable)
        self._paused = False

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
            if self._closed or self._paused:
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
        if self._acts_first(examined):
            self._act(examined)
            if not self._closed:
                self._acted(frame, examined)
                self._consume(unconsumed)
        elif self._consume(unconsumed):
            self._act(examined)

    def _consume(self, size: int) -> bool:
        try:
            while size:  # the kernel may stop early where a peer attached descriptors
                size -= self._sock.recv_into(_discarded, size)
        except OSError as error:
            self._close(error)
            return False
        return True

    def _read_pieces(self, buffer: _Pieces) -> None:
        for _ in range(PIECES_PER_WAKEUP):
            if buffer.skipping:
                size = self._skip(buffer)
            else:
                size = self._peek(min(buffer.missing, PEEK_SIZE))
                if size > 0 and not self._take_piece(buffer, _peeked_view[:size]):
                    return
            if size <= 0 or self._large is None or self._paused:
                return

    def _take_piece(self, buffer: _Pieces, piece: memoryview) -> bool:
        if self._outlives:
            mark_piece(self._sock, buffer.count, len(piece))
        try:
            self._partial(piece)
        except Exception as error:
            self._close(error)
            return False
        if not self._consume(len(piece)):
            return False
        if self._outlives:
            unmark(self._sock)
        buffer.count += 1
        buffer.feed(piece)
        self._take_collected(buffer)
        return True

    def _take_collected(self, buffer: _Pieces) -> None:
        frame = buffer.next_frame()
        if buffer.skipping and self._outlives:
            mark_skip(self._sock, buffer.missing)
        if buffer.empty:
            self._large = None
        if frame is not None:
            self._take(frame, 0)
            if not self._closed:
                self._partial(_no_piece)

    def _skip(self, buffer: _Pieces) -> int:
        """Throw bytes away; return how many: 0 or less: none, or the connection ended."""
        try:
            size = self._sock.recv_into(_discarded, min(buffer.missing, PEEK_SIZE))
        except BlockingIOError:
            return -1
        except OSError as error:
            self._close(error)
            return -1
        if size == 0:
            self._close(ConnectionLost("the peer closed the connection inside a frame"))
        buffer.feed(_peeked_view[:size])
        if buffer.empty:
            self._large = None
            if self._outlives:
                unmark(self._sock)
        return size

    def _resume(self, pieces: Sequence[bytes]) -> None:
        """Go on reading where an earlier process has stopped: inside a frame of which it has recorded these
        pieces and consumed all but perhaps the last, or inside one that it was throwing away, or between two.
        """
        size = left_to_skip(self._sock)
        if not pieces and size:
            self._large = _Pieces()
            self._large.skip(size)
            return
        buffer = _Pieces()
        for piece in pieces:
            buffer.feed(piece)
        buffer.count = len(pieces)
        if pieces and not self._consume(unread_of_piece(self._sock, len(pieces) - 1, len(pieces[-1]))):
            return
        unmark(self._sock)
        if pieces:
            self._large = buffer
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
        if not self._closed and not self._paused:
            self._loop.add_reader(self._sock, self._on_readable)

    def _stop_peeking(self) -> None:
        """Consume the frame at hand piece by piece; the loop calls `_on_readable` for the pieces."""
        self._end_waiting_for_rest()
        self._large = _Pieces()

    def _refuse_pieces(self, what: str) -> None:
        """Instead of consuming a frame piece by piece: end the connection if it is too large to be peeked whole, else
        wait for its rest, however late that is.
        """
        size = self._peek(HEADER_SIZE)
        if size == HEADER_SIZE:
            data_size, stream_id, _type, _flags = HEADER.unpack_from(_peeked)
            if HEADER_SIZE + data_size > PEEK_SIZE:
                self._close(RemoteProtocolError(f"stream {stream_id}: {what} of {data_size} bytes"))

    # ── writing ────────────────────────────────────────────────────────────────────────────────

    def _write(self, frame: bytes, report: int = 0) -> None:
        """Send a frame, or queue what the kernel does not take; `_sent(report)` follows when all of it is
        gone.
        """
        if self._closed:
            return
        if len(frame) > ATOMIC_SIZE and (spilled := self._spill(frame)) is not None:
            self._enqueue(spilled, report)
        elif self._unsent is not None:
            self._enqueue(memoryview(frame), report)
        else:
            sent = self._send(frame)
            if sent == len(frame):
                if report:
                    self._sent(report)
            elif sent >= 0:
                self._unsent = deque()
                self._loop.add_writer(self._sock, self._on_writable)
                self._enqueue(memoryview(frame)[sent:], report)

    def _enqueue(self, rest: memoryview | Spilled, report: int) -> None:
        if self._unsent is None:
            self._unsent = deque()
            self._loop.add_writer(self._sock, self._on_writable)
            self._unsent.append((rest, report))
            self._unsent_size = len(rest)
            self._on_writable()
        else:
            self._unsent.append((rest, report))
            self._unsent_size += len(rest)
        if self._unsent_size > self._queue_limit:
            self._close(ConnectionLost(f"the peer left {self._unsent_size} bytes unread"))

    def _send(self, data: bytes | memoryview | Spilled) -> int:
        """Return how many bytes the kernel took; -1: the connection is closed."""
        try:
            if isinstance(data, Spilled):
                return data.send(self._sock)
            # Vsock of a virtual machine may lose packets that are longer (docs/agent-protocol.md).
            return self._sock.send(memoryview(data)[:ATOMIC_SIZE], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._close(error)
            return -1

    def _end(self, rest: memoryview | Spilled, report: int) -> None:
        if type(rest) is Spilled:
            rest.close()
            self._unspilled(rest)
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
            if type(rest) is memoryview:
                rest = rest[sent:]
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

    @property
    def _outlives(self) -> bool:
        """Whether another process may go on with this connection, which needs marks in the kernel then."""
        return False

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

    def _spill(self, frame: bytes) -> Spilled | None:
        """Return a large frame in a memfd that somebody keeps, if anybody does."""
        return None

    def _unspilled(self, frame: Spilled) -> None:
        """Such a frame is sent, or will never be."""

    def _partial(self, piece: memoryview) -> None:
        """A piece of a frame that cannot be peeked whole is about to be consumed."""

    def _sent(self, report: int) -> None:
        """A frame written with this `report` is in the kernel as a whole."""
