"""What a layer unpacks to, found out before anything of it is unpacked: its digest and how much room it takes.

Source: OCI image-spec config.md, "Layer DiffID"; tar(5). A few kilobytes of gzip, or of a sparse file's map, stand for
more than any disk has, and a header for more than the memory.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from typing import IO

from common.errors import InvalidArgument
from sandboxctl.embedded.image_layout import GZIP_TYPE

_CHUNK_BYTES = 1 << 20
_LONGEST_HEADER_BYTES = 1 << 20  # as archive/tar of Go has it, which unpacks
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, OSError)


def check_layer(path: str, media_type: str, diff_id: str, limit_bytes: int, where: str) -> int:
    """Compare a layer in a file with the digest of what it unpacks to, and return how many bytes that takes.

    :raise InvalidArgument: it is another layer, no archive, or larger than the limit.
    """
    opened = gzip.open(path, "rb") if media_type == GZIP_TYPE else open(path, "rb")  # noqa: SIM115
    with opened as file:
        content = _Content(file, limit_bytes, where)
        try:
            size = _measure(content)
        except _UNREADABLE as error:
            raise InvalidArgument(f"{where} is damaged: {error}") from None
    if content.digest != diff_id:
        raise InvalidArgument(
            f"{where} is not the image's own: it unpacks to {content.digest}, not {diff_id}"
        )
    return size


class _Content:
    """A file that is read once, forwards, as tarfile does, and its digest."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit_bytes: int, where: str) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self.where = where
        self._hash = hashlib.sha256()
        self._position = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def check(self, size: int) -> None:
        """Refuse a size that is too large."""
        if size > self._limit_bytes:
            raise InvalidArgument(
                f"{self.where} does not fit: of the room for images {self._limit_bytes >> 20} MiB are left"
            )

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position:
            if not self.read(min(_CHUNK_BYTES, position - self._position)):
                return

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER_BYTES:
            raise InvalidArgument(f"{self.where} has a header of {size} bytes")
        data = self._file.read(size)
        self._hash.update(data)
        self._position += len(data)
        self.check(self._position)
        return data


def _measure(content: _Content) -> int:
    """Read to the end; return the size of the archive, or of the files in it where they are larger."""
    files = 0
    with tarfile.open(fileobj=content, mode="r:") as tar:  # type: ignore[call-overload]
        while member := tar.next():
            tar.members.clear()  # else all are kept
            files += member.size
            content.check(files)
    while rest := content.read(_CHUNK_BYTES):
        # What is a header for others only would not have been counted.
        if rest.strip(b"\0"):
            raise InvalidArgument(f"{content.where} goes on after its end")
    return max(files, content.tell())
