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
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints

from common.errors import FailedPrecondition, SandboxdError


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Record(Dataclass, Protocol):
    """A dataclass that can be written to disk."""

    VERSION: ClassVar[int]


DataT = TypeVar("DataT", bound=Dataclass)
RecordT = TypeVar("RecordT", bound=Record)

RecordWriter = Callable[[str, Record], None]
"""What writes a record to a path, as `write_record` does."""


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


def write_no_record(path: str, record: Record) -> None:
    """Write nothing: for a program that does not outlive what its records would tell of."""


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
        known = _hints(record_type)
        record = from_data(record_type, {k: v for k, v in envelope["record"].items() if k in known})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(f"record {path} is damaged: {error}") from error
    return record, written_in == boot_id()


def from_data(dataclass: type[DataT], fields: Mapping[str, Any]) -> DataT:
    """Return a dataclass of its fields as JSON has them.

    :raise TypeError: a field is missing, unknown, or not of its type.
    :raise ValueError: the dataclass itself refuses them.
    """
    hints = _hints(dataclass)
    for name, value in fields.items():
        if name in hints and not _fits(value, hints[name]):
            expected = str(hints[name]) if get_args(hints[name]) else hints[name].__name__
            raise TypeError(f"{name} is no {expected.replace('typing.', '')}")
    return dataclass(**fields)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value of JSON is of a type: `Any`, what JSON has, or lists and dictionaries of such."""
    if hint is Any:
        return True
    if hint is int:
        return type(value) is int and value.bit_length() < 64
    origin, inner = get_origin(hint), get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    return isinstance(value, hint)


@functools.cache
def _hints(dataclass: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(dataclass)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}
