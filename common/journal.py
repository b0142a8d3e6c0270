"""The journal of requests in progress, and the connections they came on, for the daemon that comes after this one.

One append-only file on tmpfs for the whole daemon; an entry is one write. What a death tears off at the end was not
yet promised to anybody. Nothing is kept in memory but the file's size: frames that wait are many, and needed once.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from common.descriptors.names import name_of, serial_of
from common.descriptors.store import DescriptorStore
from common.errors import ResourceExhausted
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.ttrpc import Replay, ReplayedRequest, Server

COMPACT_BYTES: Final = 4 << 20
_CONNECTION: Final = "c"
_SPILLED: Final = "w"

# size of the payload, kind, connection, stream; the checksum covers both.
_ENTRY = struct.Struct("=IBQI")
_SUM = struct.Struct("=I")
_ADMITTED, _OUTCOME, _ANSWERED, _PARTIAL, _SPILL, _CLOSED = range(1, 7)

log = get_logger()


class KeptConnection(NamedTuple):
    """A connection of an earlier daemon: `path` is the socket that was listened on."""

    sock: socket.socket
    path: str
    replay: Replay


class _Pending:
    """What the entries say of one connection."""

    __slots__ = ("outcomes", "pieces", "requests", "spilled")

    def __init__(self) -> None:
        self.requests: dict[int, bytes] = {}
        self.outcomes: dict[int, bytes] = {}
        self.pieces: list[bytes] = []
        self.spilled: dict[int, str] = {}

    def apply(self, kind: int, stream_id: int, payload: bytes) -> None:
        if kind == _ADMITTED:
            self.requests.setdefault(stream_id, payload)
        elif kind == _OUTCOME:
            self.outcomes[stream_id] = payload
        elif kind == _ANSWERED:
            for kept in (self.requests, self.outcomes, self.spilled):
                kept.pop(stream_id, None)
        elif kind == _PARTIAL:
            self.pieces = [*self.pieces, payload] if payload else []
        elif kind == _SPILL:
            self.spilled[stream_id] = payload.decode()

    def entries(self, connection_id: int) -> Iterator[bytes]:
        for stream_id, frame in self.requests.items():
            yield _encode(_ADMITTED, connection_id, stream_id, frame)
        for stream_id, frame in self.outcomes.items():
            yield _encode(_OUTCOME, connection_id, stream_id, frame)
        for piece in self.pieces:
            yield _encode(_PARTIAL, connection_id, 0, piece)
        for stream_id, name in self.spilled.items():
            yield _encode(_SPILL, connection_id, stream_id, name.encode())


class ConnectionJournal:
    """Records requests, and keeps the connections themselves in a descriptor store (`Journal`).

    Where nobody keeps connections no request is worth recording: then it does nothing.
    """

    __slots__ = ("_fd", "_kept", "_path", "_size", "_spilled", "_store", "_unwritten")

    def __init__(self, path: str, store: DescriptorStore) -> None:
        """Open the journal of an earlier daemon, or begin one.

        :raise OSError: the file cannot be opened or written.
        """
        self._path = path
        self._store = store
        self._unwritten: list[bytes] = []
        self._spilled: dict[tuple[int, int], str] = {}
        self._kept: dict[int, KeptConnection] = {}
        self._fd = -1
        self._size = 0
        if store.keeps:
            pending = self._rewrite()
            self._take_connections(pending)
        elif os.path.lexists(path):
            os.unlink(path)

    # -- what an earlier daemon has left -------------------------------------------------------------

    @property
    def kept(self) -> list[KeptConnection]:
        """The connections of an earlier daemon that were not adopted."""
        return list(self._kept.values())

    def adopt_into(self, server: Server, path: str) -> int:
        """Let a server go on with the connections that were accepted on this path; return how many."""
        adopted = [connection_id for connection_id, kept in self._kept.items() if kept.path == path]
        for connection_id in adopted:
            kept = self._kept.pop(connection_id)
            server.adopt(kept.sock, kept.replay)
        return len(adopted)

    def abandon_rest(self, keep: bool) -> None:
        """Close the connections that nobody has adopted, or with `keep` leave them, unread, to a later daemon."""
        if keep:
            return
        for connection_id, kept in self._kept.items():
            log.warning("connection.abandoned", path=kept.path)
            kept.sock.close()
            for fd in kept.replay.spilled:
                os.close(fd)
            self.closed(connection_id)
        self._kept.clear()

    def _take_connections(self, pending: dict[int, _Pending]) -> None:
        for name in self._store.untaken():
            if not name.startswith(_CONNECTION):
                continue
            connection_id = serial_of(name)
            for fd in self._store.take(name):
                sock = socket.socket(fileno=fd)
                left = pending.pop(connection_id, None) or _Pending()
                replay = Replay(
                    connection_id,
                    [
                        ReplayedRequest(stream_id, frame, left.outcomes.get(stream_id))
                        for stream_id, frame in sorted(left.requests.items())
                    ],
                    left.pieces,
                    [fd for spilled in left.spilled.values() for fd in self._store.take(spilled)],
                )
                self._kept[connection_id] = KeptConnection(sock, _path_of(sock), replay)
                for stream_id, spilled in left.spilled.items():
                    self._spilled[connection_id, stream_id] = spilled
        for connection_id in pending:
            self._append(_encode(_CLOSED, connection_id, 0, b""))

    # -- Journal -------------------------------------------------------------------------------------

    def opened(self, sock: socket.socket) -> int:
        """Keep a connection; its id is the serial number of its name."""
        name = self._store.new_name(_CONNECTION)
        self._store.put(name, [sock.fileno()])
        failpoint(Failpoint.CONNECTION_KEPT)
        return serial_of(name)

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        """Record a request.

        :raise ResourceExhausted: there is no room for it.
        """
        if self._fd >= 0:
            self._write(_encode(_ADMITTED, connection_id, stream_id, frame))
            failpoint(Failpoint.REQUEST_ADMITTED)

    def consumed(self, connection_id: int, stream_id: int) -> None:
        """Nothing changes: what is both in the socket and on record is told apart by its stream id."""
        failpoint(Failpoint.REQUEST_CONSUMED)

    def outcome(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        """Record an answer that is about to be sent."""
        if self._fd >= 0:
            self._append(_encode(_OUTCOME, connection_id, stream_id, frame))
            failpoint(Failpoint.OUTCOME_RECORDED)

    def answered(self, connection_id: int, stream_id: int) -> None:
        """Record that an answer was sent."""
        failpoint(Failpoint.REQUEST_ANSWERED)
        if self._fd >= 0:
            spilled = self._spilled.pop((connection_id, stream_id), None)
            if spilled is not None:
                self._store.remove(spilled)
            self._append(_encode(_ANSWERED, connection_id, stream_id, b""))

    def partial(self, connection_id: int, chunk: bytes) -> None:
        """Record a piece of a frame.

        :raise ResourceExhausted: there is no room for it.
        """
        if self._fd >= 0:
            self._write(_encode(_PARTIAL, connection_id, 0, chunk))

    def spill(self, connection_id: int, stream_id: int, frame: bytes) -> int:
        """Keep a large answer in a memfd, and return it."""
        if self._fd < 0:
            return -1
        fd = os.memfd_create("answer", os.MFD_CLOEXEC)
        try:
            os.pwrite(fd, frame, 0)
            name = self._store.new_name(_SPILLED)
            self._write(_encode(_SPILL, connection_id, stream_id, name.encode()))
            self._store.put(name, [fd])
        except (OSError, ResourceExhausted):
            os.close(fd)
            return -1
        self._spilled[connection_id, stream_id] = name
        return fd

    def closed(self, connection_id: int) -> None:
        """Forget a connection."""
        self._store.remove(name_of(_CONNECTION, connection_id))
        for key in [key for key in self._spilled if key[0] == connection_id]:
            self._store.remove(self._spilled.pop(key))
        if self._fd >= 0:
            self._append(_encode(_CLOSED, connection_id, 0, b""))

    def close(self) -> None:
        """Close the file; what it says stays true."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- the file ------------------------------------------------------------------------------------

    def _append(self, entry: bytes) -> None:
        """Write what may come late: it only spares a successor work."""
        self._unwritten.append(entry)
        try:
            self._write(b"")
        except ResourceExhausted as error:
            log.error("journal.not_written", error=error)

    def _write(self, entry: bytes) -> None:
        data = b"".join([*self._unwritten, entry]) if self._unwritten else entry
        if not data:
            return
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise ResourceExhausted(f"cannot write the journal {self._path}: {error.strerror}") from None
        if written != len(data):
            os.ftruncate(self._fd, self._size)
            raise ResourceExhausted(f"cannot write the journal {self._path}: no space is left")
        self._unwritten.clear()
        self._size += written
        if self._size > COMPACT_BYTES:
            self._rewrite()

    def _rewrite(self) -> dict[int, _Pending]:
        """Write a new file with what is pending, put it in the place of the old one, and return it."""
        try:
            with open(self._path, "rb") as file:
                pending, intact_bytes = _read(file.read())
        except FileNotFoundError:
            pending, intact_bytes = {}, 0
        data = b"".join(
            entry for connection_id, left in pending.items() for entry in left.entries(connection_id)
        )
        temporary = f"{self._path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        if data and os.write(fd, data) != len(data):
            os.close(fd)
            log.error("journal.not_compacted", path=temporary, reason="no space is left")
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.ftruncate(fd, intact_bytes)
        else:
            os.rename(temporary, self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, os.fstat(fd).st_size
        return pending


def _encode(kind: int, connection_id: int, stream_id: int, payload: bytes) -> bytes:
    body = _ENTRY.pack(len(payload), kind, connection_id, stream_id) + payload
    return body + _SUM.pack(zlib.crc32(body))


def _read(data: bytes) -> tuple[dict[int, _Pending], int]:
    """Return what is pending by connection, and how many bytes are intact: a torn tail ends the reading."""
    pending: dict[int, _Pending] = {}
    start = 0
    while start + _ENTRY.size + _SUM.size <= len(data):
        size, kind, connection_id, stream_id = _ENTRY.unpack_from(data, start)
        end = start + _ENTRY.size + size
        if end + _SUM.size > len(data) or _SUM.unpack_from(data, end)[0] != zlib.crc32(data[start:end]):
            break
        if kind == _CLOSED:
            pending.pop(connection_id, None)
        else:
            pending.setdefault(connection_id, _Pending()).apply(
                kind, stream_id, data[start + _ENTRY.size : end]
            )
        start = end + _SUM.size
    return pending, start


def _path_of(sock: socket.socket) -> str:
    try:
        name = sock.getsockname()
    except OSError:
        return ""
    return name if isinstance(name, str) else ""
