"""The seam for a journal: what must be on record before it leaves the kernel."""

from __future__ import annotations

from typing import Protocol


class Journal(Protocol):
    """Told by a server what it is about to take responsibility for. All methods are called in the event loop.

    A frame stays in the socket until `admitted` returned: a process that dies before finds it there
    again, one that dies after finds it in its journal (or in both: stream ids only grow, so an id that
    is on record is a replay). Only calls of methods declared `journaled` are reported.
    """

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        """Record a frame of a journaled call. If this raises, the call is answered with that error and not
        run.
        """

    def answered(self, connection_id: int, stream_id: int) -> None:
        """The last frame of the call is in the kernel as a whole; its record is not needed any more."""

    def partial(self, connection_id: int, chunk: bytes) -> None:
        """Record a piece of a frame that cannot be peeked whole, before this piece is consumed.

        All pieces of one frame arrive in order, whatever its method; `admitted` with the whole frame, or
        nothing if the call is not journaled, ends the sequence. An oversized frame is recorded no further
        than its header is known. If this raises, the connection is closed with the piece unread.
        """

    def closed(self, connection_id: int) -> None:
        """The connection is gone and with it the wish for any answer on it."""


class NullJournal:
    """Records nothing: calls in progress die with the process."""

    __slots__ = ()

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        pass

    def answered(self, connection_id: int, stream_id: int) -> None:
        pass

    def partial(self, connection_id: int, chunk: bytes) -> None:
        pass

    def closed(self, connection_id: int) -> None:
        pass
