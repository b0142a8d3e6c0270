"""Frames: a ten-byte header and up to 4 MiB of data, cut out of bytes that may be split anywhere."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from common.ttrpc._errors import LocalProtocolError

HEADER: Final = struct.Struct(">IIBB")  # length of the data, stream id, type, flags
HEADER_SIZE: Final = HEADER.size
MAX_DATA_SIZE: Final = 4 << 20

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01  # on Request and Data: the sender will send no more data on this stream
REMOTE_OPEN: Final = 0x02  # on Request: data frames will follow
NO_DATA: Final = 0x04  # on Data: carries no message, not even an empty one


class Frame(NamedTuple):
    stream_id: int
    type: int
    flags: int
    data: bytes


class OversizedFrame(NamedTuple):
    """The header of a frame whose data was thrown away because `size` is beyond `MAX_DATA_SIZE`."""

    stream_id: int
    type: int
    flags: int
    size: int


def encode_frame(stream_id: int, frame_type: int, flags: int, data: bytes) -> bytes:
    """Return header and data as one bytes object. Raises LocalProtocolError beyond the limit."""
    if len(data) > MAX_DATA_SIZE:
        raise LocalProtocolError(f"a frame of {len(data)} bytes is beyond the limit of {MAX_DATA_SIZE} bytes")
    return HEADER.pack(len(data), stream_id, frame_type, flags) + data


class FrameBuffer:
    """Collects bytes until they make a frame. Holds at most one oversized header, never oversized data."""

    __slots__ = ("_bytes", "_skip")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._skip = 0

    @property
    def missing(self) -> int:
        """Bytes without which the frame begun cannot end (for a header not yet complete: the rest of the
        header).
        """
        if self._skip:
            return self._skip
        if len(self._bytes) < HEADER_SIZE:
            return HEADER_SIZE - len(self._bytes)
        size: int = HEADER.unpack_from(self._bytes)[0]
        return max(0, HEADER_SIZE + size - len(self._bytes))

    @property
    def skipping(self) -> bool:
        """Whether the next bytes belong to oversized data and are thrown away."""
        return self._skip > 0

    @property
    def empty(self) -> bool:
        """Whether the buffer is between two frames."""
        return not self._skip and not self._bytes

    def skip(self, size: int) -> None:
        """Throw the next `size` bytes away: they belong to oversized data."""
        self._skip = size

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = memoryview(data)[skipped:]
        self._bytes += data

    def next_frame(self) -> Frame | OversizedFrame | None:
        """Take the next frame out, or return None until more bytes arrive."""
        if len(self._bytes) < HEADER_SIZE:
            return None
        size, stream_id, frame_type, flags = HEADER.unpack_from(self._bytes)
        end = HEADER_SIZE + size
        if size > MAX_DATA_SIZE:
            self._skip = max(0, end - len(self._bytes))
            del self._bytes[:end]
            return OversizedFrame(stream_id, frame_type, flags, size)
        if len(self._bytes) < end:
            return None
        data = bytes(memoryview(self._bytes)[HEADER_SIZE:end])
        del self._bytes[:end]
        return Frame(stream_id, frame_type, flags, data)
