"""Records: versioned facts on disk about what exists, written before it is made.

A record is a frozen dataclass with a `VERSION` class attribute; the file is JSON with the version and the
kernel's boot id around it. State lies on tmpfs, so a rename without fsync is atomic and survives the
death of the process; after a reboot nothing that a record describes is alive any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
from typing import Any, ClassVar, Protocol, TypeVar, get_origin, get_type_hints

from common.errors import FailedPrecondition, SandboxdError


class Record(Protocol):
    """A dataclass that can be written to disk."""

    VERSION: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]


RecordT = TypeVar("RecordT", bound=Record)


class UnreadableRecord(SandboxdError):
    """A record that cannot be understood: it stays as it is for the operator, nothing is deleted for it."""


@functools.cache
def boot_id() -> str:
    """Return the id of this boot of the kernel (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def write_record(path: str, record: Record) -> None:
    """Write a record atomically; a reader sees the old one or the new one, never a mixture."""
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    envelope = {"version": record.VERSION, "boot_id": boot_id(), "record": fields}
    data = json.dumps(envelope, separators=(",", ":")).encode()
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        # What is half written would take the space that removing something needs.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, temporary) from None
    os.rename(temporary, path)


def read_record(path: str, record_type: type[RecordT]) -> tuple[RecordT, bool]:
    """Read a record; the second value tells whether it is of this boot.

    :raise FileNotFoundError: there is none.
    :raise FailedPrecondition: a newer sandboxd wrote it.
    :raise UnreadableRecord: it is damaged.
    """
    with open(path, "rb") as file:
        text = file.read()
    try:
        envelope = json.loads(text)
        version, written_in = envelope["version"], envelope["boot_id"]
        if not isinstance(version, int):
            raise TypeError(f"version is a {type(version).__name__}")
        if version > record_type.VERSION:
            raise FailedPrecondition(
                f"record {path} has version {version}, this sandboxd knows {record_type.VERSION}: "
                "start the version that wrote it, its pods are untouched"
            )
        shapes = _shapes(record_type)
        fields = {name: value for name, value in envelope["record"].items() if name in shapes}
        for name, value in fields.items():
            if not isinstance(value, shapes[name]):
                raise TypeError(f"{name} is a {type(value).__name__}, not a {shapes[name].__name__}")
        record = record_type(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(f"record {path} is damaged: {error}") from error
    return record, written_in == boot_id()


@functools.cache
def _shapes(record_type: type[Record]) -> dict[str, type]:
    hints = get_type_hints(record_type)
    return {f.name: get_origin(hints[f.name]) or hints[f.name] for f in dataclasses.fields(record_type)}
