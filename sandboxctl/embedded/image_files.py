"""The files of an image, in a directory or in a tar archive: read whole, or put somewhere with their digest."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import tarfile
import zlib
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Protocol, Self

from common.errors import InvalidArgument, NotFound
from sandboxctl.embedded.image_layout import MAX_DOCUMENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20
_MOST_MEMBERS = 10_000
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError)


class ImageFiles(Protocol):
    """Where an image is. `name` is what an operator calls it; paths inside are relative."""

    name: str

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file of the image; raises NotFound, InvalidArgument."""
        ...


class DirectoryFiles:
    """An image in a directory."""

    def __init__(self, directory: str) -> None:
        self.name = directory

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        full = f"{self.name}/{_inside(path)}"
        try:
            # Nothing that could be waited for, such as a FIFO.
            fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{self.name}: there is no {path}") from None
        except OSError as error:
            raise InvalidArgument(f"{full}: {error.strerror}") from None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"{full} is not a regular file")
            yield file


class _Member(tarfile.TarInfo):
    """A member of an archive whose further headers, which are read whole, are not larger than the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADER_TYPES and member.size > MAX_DOCUMENT_BYTES:
            raise tarfile.ReadError(f"it has a header of {member.size} bytes")
        return member


class ArchiveFiles:
    """An image in a tar archive, which may be compressed. Use as a context manager."""

    def __init__(self, path: str) -> None:
        """:raise InvalidArgument: it is no archive, or a damaged one."""
        self.name = path
        try:
            self._tar = tarfile.open(path, tarinfo=_Member)  # noqa: SIM115 - closed by __exit__
        except _UNREADABLE:
            raise InvalidArgument(f"{path} is neither a directory nor a readable tar archive") from None
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from None
        try:
            self._members = self._read_members()
        except (*_UNREADABLE, OSError) as error:
            self._tar.close()
            raise InvalidArgument(f"{path} is damaged: {error}") from None

    def _read_members(self) -> dict[str, tarfile.TarInfo]:
        members = {}
        while member := self._tar.next():
            self._tar.members.clear()  # type: ignore[attr-defined]  # else all are kept there too
            members[posixpath.normpath(member.name)] = member
            if len(members) > _MOST_MEMBERS:
                raise tarfile.ReadError(f"it has more than {_MOST_MEMBERS} members")
        return members

    def __enter__(self) -> ArchiveFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        member = self._members.get(_inside(path))
        if member is not None and (member.issym() or member.islnk()):
            # Layers that are the same as another image's are links to those (docker save before version 25).
            base = posixpath.dirname(member.name) if member.issym() else ""
            member = self._members.get(_inside(posixpath.join(base, member.linkname)))
        if member is None:
            raise NotFound(f"{self.name}: there is no {path}")
        if not member.isreg():
            raise InvalidArgument(f"{self.name}: {path} is not a regular file")
        try:
            file = self._tar.extractfile(member)
            with file or io.BytesIO() as content:
                yield content
        except _UNREADABLE as error:
            raise InvalidArgument(f"{self.name}: {path} is damaged: {error}") from None


def read_document(files: ImageFiles, path: str) -> bytes:
    """Return the content of a small file. Raises NotFound, InvalidArgument."""
    with files.open(path) as file:
        text = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"{files.name}: {path} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    return text


def copy_file(files: ImageFiles, path: str, target: str, limit_bytes: int) -> str:
    """Copy a file of an image to a new file and return its digest.

    :raise InvalidArgument: it is larger than the limit, or damaged.
    :raise NotFound, OSError: it is not there, or cannot be written.
    """
    digest = hashlib.sha256()
    with files.open(path) as source, open(target, "xb") as copy:
        while chunk := source.read(_CHUNK_BYTES):
            if copy.tell() + len(chunk) > limit_bytes:
                raise InvalidArgument(
                    f"{files.name}: {path} does not fit: of the room for images {limit_bytes >> 20} MiB are left"
                )
            digest.update(chunk)
            copy.write(chunk)
    return f"sha256:{digest.hexdigest()}"


def digest_of(text: bytes) -> str:
    """Return the digest of a blob."""
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _inside(path: str) -> str:
    normal = posixpath.normpath(path)
    if normal.startswith(("/", "../")) or normal == ".." or "\0" in normal:
        raise InvalidArgument(f"{path[:200]!r} leads out of the image")
    return normal
