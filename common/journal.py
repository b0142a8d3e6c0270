"""The journal of requests in progress, and the connections they came on, for the daemon that comes after this one.

One append-only file on tmpfs for the whole daemon; an entry is one write. What a death tears off at the end was not
yet promised to anybody. Nothing is kept in memory but the file's size: frames that wait are many, and needed once.

The file begins with a line that names its format; a later version that changes the format raises the number in it,
and may add kinds of entries without, which this one passes over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from common.descriptors.names import name_of, serial_of
from common.descriptors.store import DescriptorStore
from common.errors import FailedPrecondition, ResourceExhausted
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.ttrpc import Replay, ReplayedRequest, Server, SpilledFrame

COMPACT_BYTES: Final = 1 << 20
_FORMAT: Final = b"sandboxd journal "
_HEADER: Final = _FORMAT + b"1\n"
_CONNECTION: Final = "c"
_SPILLED: Final = "w"
_LINK: Final = "a"  # with the serial number of the connection that it belongs to

# Size of the payload, kind, connection, stream (or the number of a large frame); the checksum covers payload, too.
_ENTRY = struct.Struct("=IBQQ")
_SUM = struct.Struct("=I")
_ADMITTED, _OUTCOME, _ANSWERED, _PARTIAL, _SPILLED_TO, _UNSPILLED, _CLOSED = range(1, 8)

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
        self.spilled: set[int] = set()

    def apply(self, kind: int, number: int, payload: bytes) -> None:
        if kind == _ADMITTED:
            self.requests.setdefault(number, payload)
        elif kind == _OUTCOME:
            self.outcomes[number] = payload
        elif kind == _ANSWERED:
            self.requests.pop(number, None)
            self.outcomes.pop(number, None)
        elif kind == _PARTIAL:
            if payload:
                self.pieces.append(payload)
            else:
                self.pieces.clear()
        elif kind == _SPILLED_TO:
            self.spilled.add(number)
        elif kind == _UNSPILLED:
            self.spilled.discard(number)

    def entries(self, connection_id: int) -> Iterator[bytes]:
        for stream_id, frame in self.requests.items():
            yield _encode(_ADMITTED, connection_id, stream_id, frame)
        for stream_id, frame in self.outcomes.items():
            yield _encode(_OUTCOME, connection_id, stream_id, frame)
        for piece in self.pieces:
            yield _encode(_PARTIAL, connection_id, 0, piece)
        for serial in self.spilled:
            yield _encode(_SPILLED_TO, connection_id, serial, b"")


class ConnectionJournal:
    """Records requests, and keeps the connections themselves in a descriptor store (`Journal`).

    Where nobody keeps connections no request is worth recording: then it does nothing.
    """

    __slots__ = ("_compact_at", "_fd", "_kept", "_path", "_size", "_store", "_unwritten")

    def __init__(self, path: str, store: DescriptorStore) -> None:
        """Open the journal of an earlier daemon, or begin one.

        :raise OSError: the file cannot be opened or written.
        :raise FailedPrecondition: it is of a later version, whose connections must stay as they are.
        """
        self._path = path
        self._store = store
        self._unwritten: list[bytes] = []
        self._kept: dict[int, KeptConnection] = {}
        self._fd = -1
        self._size = 0
        self._compact_at = COMPACT_BYTES
        if store.keeps:
            self._take_connections(self._open())
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
            for frame in kept.replay.spilled:
                os.close(frame.fd)
                self.unspilled(connection_id, frame.serial)
            self.closed(connection_id)
        self._kept.clear()

    def _take_connections(self, pending: dict[int, _Pending]) -> None:
        names = self._store.untaken()
        for name in names:
            if name.startswith(_CONNECTION):
                connection_id = serial_of(name)
                self._take_connection(connection_id, name, pending.pop(connection_id, _Pending()))
        for connection_id in pending:
            self._append(_encode(_CLOSED, connection_id, 0, b""))
        for name in names:
            if name.startswith(_SPILLED) and (rest := self._store.take(name)):
                # Of a connection that is gone, or put away by a daemon that died before it said so.
                _close_all(rest)
                self._store.remove(name)

    def _take_connection(self, connection_id: int, name: str, left: _Pending) -> None:
        fds = self._store.take(name)
        if not fds:
            return
        sock = socket.socket(fileno=fds[0])
        _close_all(fds[1:])
        spilled = []
        lost = False
        for serial in sorted(left.spilled):
            memfds = self._store.take(name_of(_SPILLED, serial))
            lost = lost or not memfds
            spilled += [SpilledFrame(fd, serial) for fd in memfds[:1]]
            _close_all(memfds[1:])
        requests = [
            ReplayedRequest(stream_id, frame, left.outcomes.get(stream_id))
            for stream_id, frame in sorted(left.requests.items())
        ]
        replay = Replay(connection_id, requests, left.pieces, spilled)
        # Where in an answer its peer is cannot be told without the answer: nothing may be written to it any more.
        self._kept[connection_id] = KeptConnection(sock, "" if lost else _path_of(sock), replay)

    # -- Journal -------------------------------------------------------------------------------------

    def opened(self, sock: socket.socket) -> int:
        """Keep a connection; its id is the serial number of its name."""
        name = self._store.new_name(_CONNECTION)
        self._store.put(name, [sock.fileno()])
        failpoint(Failpoint.CONNECTION_KEPT)
        return serial_of(name)

    def when_kept(self, callback: Callable[[], None]) -> None:
        """Call back when the store has the connections that were opened until now."""
        self._store.when_sent(callback)

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
            self._append(_encode(_ANSWERED, connection_id, stream_id, b""))

    def partial(self, connection_id: int, chunk: bytes) -> None:
        """Record a piece of a frame.

        :raise ResourceExhausted: there is no room for it.
        """
        if self._fd >= 0:
            entry = _encode(_PARTIAL, connection_id, 0, chunk)
            if chunk:
                self._write(entry)
            else:
                self._append(entry)

    def spill(self, connection_id: int, frame: bytes) -> SpilledFrame | None:
        """Keep a large frame in a memfd, and return it; None if that cannot be."""
        if self._fd < 0:
            return None
        try:
            fd = os.memfd_create("answer", os.MFD_CLOEXEC)
        except OSError as error:
            log.error("answer.not_kept", error=error)
            return None
        name = self._store.new_name(_SPILLED)
        serial = serial_of(name)
        try:
            if os.pwrite(fd, frame, 0) != len(frame):
                raise ResourceExhausted(f"cannot keep an answer of {len(frame)} bytes: no memory is left")
            # In this order: an entry without its memfd would mean that part of the answer may be gone.
            self._store.put(name, [fd])
            self._write(_encode(_SPILLED_TO, connection_id, serial, b""))
        except (OSError, ResourceExhausted) as error:
            log.error("answer.not_kept", error=error)
            self._store.remove(name)
            os.close(fd)
            return None
        return SpilledFrame(fd, serial)

    def unspilled(self, connection_id: int, serial: int) -> None:
        """Forget a large frame, first in the file: it names nothing that is not kept."""
        if self._fd >= 0:
            self._append(_encode(_UNSPILLED, connection_id, serial, b""))
            if not self._unwritten:
                self._store.remove(name_of(_SPILLED, serial))

    def link_opened(self, connection_id: int, sock: socket.socket) -> None:
        """Keep the link that a relay has made for a connection."""
        self._store.put(name_of(_LINK, connection_id), [sock.fileno()])
        failpoint(Failpoint.LINK_KEPT)

    def take_link(self, connection_id: int) -> socket.socket | None:
        """Return the link that an earlier daemon had for a connection."""
        fds = self._store.take(name_of(_LINK, connection_id))
        _close_all(fds[1:])
        return socket.socket(fileno=fds[0]) if fds else None

    def link_closed(self, connection_id: int) -> None:
        """Keep the link of a connection no longer."""
        self._store.remove(name_of(_LINK, connection_id))

    def closed(self, connection_id: int) -> None:
        """Forget a connection."""
        self._store.remove(name_of(_CONNECTION, connection_id))
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
            if len(self._unwritten) == 1:
                log.error("journal.not_written", error=error)

    def _write(self, entry: bytes) -> None:
        data = b"".join([*self._unwritten, entry]) if self._unwritten else entry
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise ResourceExhausted(f"cannot write the journal {self._path}: {error.strerror}") from None
        if written != len(data):
            os.ftruncate(self._fd, self._size)
            raise ResourceExhausted(f"cannot write the journal {self._path}: no space is left")
        self._unwritten.clear()
        self._size += written
        if self._size > self._compact_at:
            self._compact()

    def _open(self) -> dict[int, _Pending]:
        """Go on with the file of an earlier daemon, or a new one, and return what is pending."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        version = data[len(_FORMAT) : len(_FORMAT) + 9].partition(b"\n")[0]
        if data.startswith(_FORMAT) and version.isdigit() and not data.startswith(_HEADER):
            text = f"the journal {self._path} is of format {version.decode()}, this version knows 1"
            raise FailedPrecondition(text)
        pending, intact_bytes = _read(data)
        if intact_bytes != len(data):
            log.warning("journal.torn", path=self._path, size_bytes=len(data), intact_bytes=intact_bytes)
        try:
            self._rewrite(pending)
        except OSError:
            if not intact_bytes:
                raise
            # No room for a second file. The first one does as well.
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.ftruncate(self._fd, intact_bytes)
            self._size = intact_bytes
        return pending

    def _compact(self) -> None:
        try:
            with open(self._path, "rb") as file:
                self._rewrite(_read(file.read())[0])
        except OSError as error:
            log.error("journal.not_compacted", path=self._path, error=error)
        # What is pending may be large by itself: the work must stay in proportion to what was written since.
        self._compact_at = max(COMPACT_BYTES, 2 * self._size)

    def _rewrite(self, pending: dict[int, _Pending]) -> None:
        """Write a file with what is pending, and put it in the place of the old one.

        :raise OSError: it cannot be written; the old one is still there.
        """
        temporary = f"{self._path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        try:
            entries = [e for connection_id, left in pending.items() for e in left.entries(connection_id)]
            data = b"".join([_HEADER, *entries])
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
            os.rename(temporary, self._path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)


def _encode(kind: int, connection_id: int, number: int, payload: bytes) -> bytes:
    body = _ENTRY.pack(len(payload), kind, connection_id, number) + payload
    return body + _SUM.pack(zlib.crc32(body))


def _read(data: bytes) -> tuple[dict[int, _Pending], int]:
    """Return what is pending by connection, and how many bytes are intact: a torn tail ends the reading."""
    pending: dict[int, _Pending] = {}
    if not data.startswith(_HEADER):
        return pending, 0
    start = len(_HEADER)
    while start + _ENTRY.size + _SUM.size <= len(data):
        size, kind, connection_id, number = _ENTRY.unpack_from(data, start)
        end = start + _ENTRY.size + size
        if end + _SUM.size > len(data) or _SUM.unpack_from(data, end)[0] != zlib.crc32(data[start:end]):
            break
        if kind == _CLOSED:
            pending.pop(connection_id, None)
        else:
            left = pending.get(connection_id)
            if left is None:
                left = pending[connection_id] = _Pending()
            left.apply(kind, number, data[start + _ENTRY.size : end])
        start = end + _SUM.size
    return pending, start


def _path_of(sock: socket.socket) -> str:
    try:
        name = sock.getsockname()
    except OSError:
        return ""
    return name if isinstance(name, str) else ""


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
