"""The seam for a journal: what must be on record before it leaves the kernel, and what a successor is told."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from common.ttrpc._marks import SpilledFrame


class ReplayedRequest(NamedTuple):
    """A request that an earlier process has admitted and not answered; `outcome` is its answer if it was done."""

    stream_id: int
    frame: bytes
    outcome: bytes | None


class Replay(NamedTuple):
    """What an earlier process has left undone on a connection.

    `pieces` are those of a frame that was read in part; a mark on the socket tells how much of the last one was
    consumed. `spilled` are frames whose memfds tell how much of them was sent; the server closes them.
    """

    connection_id: int
    requests: Sequence[ReplayedRequest] = ()
    pieces: Sequence[bytes] = ()
    spilled: Sequence[SpilledFrame] = ()


class Journal(Protocol):
    """Told by a server what it is about to take responsibility for. All methods are called in the event loop.

    A frame of a journaled call stays in the socket until `admitted` returned: the successor of a process that dies
    before finds it there, that of one that dies after finds it in the journal (or in both: stream ids only grow,
    so the id that was admitted last is a replay if it comes first). Other calls are answered before they are
    consumed, and admitted in between if they wait or their answer does.
    """

    def opened(self, sock: socket.socket) -> int:
        """A connection was accepted; return its id, under which a successor knows it too."""

    def when_kept(self, callback: Callable[[], None]) -> None:
        """Call back, perhaps at once, when the connections that were opened until now outlive this process: nothing
        is read from them before."""

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        """Record a frame of a call. If this raises, the call is answered with that error and not run."""

    def consumed(self, connection_id: int, stream_id: int) -> None:
        """The frame of a journaled call has left the socket, and the call is about to begin; never raises."""

    def outcome(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        """The call is done, this is its answer, about to be sent; never raises."""

    def answered(self, connection_id: int, stream_id: int) -> None:
        """The last frame of the call is in the kernel as a whole; its record is not needed any more; never raises."""

    def partial(self, connection_id: int, chunk: bytes) -> None:
        """Record a piece of a frame that cannot be peeked whole, before this piece is consumed.

        All pieces of one frame arrive in order, whatever its method; `admitted` with the whole frame comes next,
        and an empty piece ends the sequence. An oversized frame is recorded no further than its header is known.
        If this raises, the connection is closed with the piece unread.
        """

    def spill(self, connection_id: int, frame: bytes) -> SpilledFrame | None:
        """Keep a frame that is too large to be sent whole or not at all, and return a memfd with it, at offset 0, that
        becomes the caller's; None: it cannot be kept.
        """

    def unspilled(self, connection_id: int, serial: int) -> None:
        """Such a frame was sent, or never will be, and its memfd is closed; never raises."""

    def closed(self, connection_id: int) -> None:
        """The connection is gone and with it the wish for any answer on it; never raises."""


_connection_ids = itertools.count(1)


class NullJournal:
    """Records nothing: calls in progress die with the process."""

    __slots__ = ()

    def opened(self, sock: socket.socket) -> int:
        return next(_connection_ids)

    def when_kept(self, callback: Callable[[], None]) -> None:
        callback()

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        pass

    def consumed(self, connection_id: int, stream_id: int) -> None:
        pass

    def outcome(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        pass

    def answered(self, connection_id: int, stream_id: int) -> None:
        pass

    def partial(self, connection_id: int, chunk: bytes) -> None:
        pass

    def spill(self, connection_id: int, frame: bytes) -> SpilledFrame | None:
        return None

    def unspilled(self, connection_id: int, serial: int) -> None:
        pass

    def closed(self, connection_id: int) -> None:
        pass


NULL_JOURNAL = NullJournal()
