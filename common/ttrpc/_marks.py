"""What the kernel keeps of a connection beside its bytes: how far an answer has gone, how far a frame was read.

Both survive the process, and both change in the very system call that moves the bytes, so that there is no instant
at which a successor could not tell what was done. An answer that does not fit into one send lies in a memfd, whose
offset sendfile(2) moves. A piece of a frame is noted in SO_PEEK_OFF (socket(7)) before it is recorded, and each byte
consumed counts that down.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final, NamedTuple

from common.ttrpc._frames import HEADER, HEADER_SIZE, REQUEST, RESPONSE

_SO_PEEK_OFF: Final = 42  # asm-generic/socket.h; Python has no name for it
_PIECE: Final = 1 << 24  # above what is added to it, the size of a piece
_SKIP: Final = 1 << 30


class SpilledFrame(NamedTuple):
    """A memfd with a frame, and the number under which the journal knows it."""

    fd: int
    serial: int


class Spilled:
    """A frame that is sent from a memfd, which this owns."""

    __slots__ = ("_fd", "_left", "begun", "serial")

    def __init__(self, frame: SpilledFrame) -> None:
        gone = os.lseek(frame.fd, 0, os.SEEK_CUR)
        self._fd = frame.fd
        self._left = os.fstat(frame.fd).st_size - gone
        self.begun = gone > 0
        self.serial = frame.serial

    def __len__(self) -> int:
        return self._left

    @property
    def answers(self) -> int:
        """The stream that this frame ends with a response; 0: it is another frame."""
        return self._stream_id(RESPONSE)

    @property
    def requests(self) -> int:
        """The stream that this frame begins with a request; 0: it is another frame."""
        return self._stream_id(REQUEST)

    def _stream_id(self, wanted: int) -> int:
        _size, stream_id, frame_type, _flags = HEADER.unpack(os.pread(self._fd, HEADER_SIZE, 0))
        return stream_id if frame_type == wanted else 0

    def send(self, sock: socket.socket) -> int:
        """Hand on what the kernel takes; return how many bytes that were."""
        sent = os.sendfile(sock.fileno(), self._fd, None, self._left) if self._left else 0
        self._left -= sent
        return sent

    def close(self) -> None:
        os.close(self._fd)


def mark_piece(sock: socket.socket, number: int, size: int) -> None:
    """Note that the piece of a frame with this number, counted from 0, is about to be recorded and consumed."""
    _mark(sock, _base(number) + size)


def unread_of_piece(sock: socket.socket, number: int, size: int) -> int:
    """Return how much of the piece that was recorded last is still in the socket."""
    left = _marked(sock) - _base(number)
    return left if 0 < left <= size else 0


def mark_skip(sock: socket.socket, size: int) -> None:
    """Note that so many bytes are to be thrown away."""
    if size < _SKIP:
        _mark(sock, _SKIP + size)


def left_to_skip(sock: socket.socket) -> int:
    """Return how many bytes are still to be thrown away."""
    return max(0, _marked(sock) - _SKIP)


def unmark(sock: socket.socket) -> None:
    """Forget the mark: the next MSG_PEEK looks at the first byte again."""
    _mark(sock, -1)


def _base(number: int) -> int:
    # Even and odd: the piece before was recorded and consumed if the mark is already that of the next one.
    return _PIECE * (1 + number % 2)


def _mark(sock: socket.socket, value: int) -> None:
    # Sockets other than unix ones may have no such option; nobody keeps those.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, value)


def _marked(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    except OSError:
        return -1
