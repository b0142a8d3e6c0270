"""The error hierarchy of the project: what went wrong, for the operator, with one canonical code.

    SandboxdError
    ├── InvalidArgument      the caller's input is malformed or refused
    ├── NotFound             the named sandbox, container, process or file does not exist
    ├── AlreadyExists        the name is taken
    ├── PermissionDenied     the caller or the kernel does not allow it
    ├── ResourceExhausted    a limit was reached
    ├── FailedPrecondition   not in this state
    ├── Unimplemented        not offered by this type
    ├── Internal             our own fault, or a tool that failed in an unknown way
    ├── Unavailable          try again: recovering, stopping, or a peer is away
    └── DeadlineExceeded     it took longer than its limit

Code that raises chooses by meaning. Only the two edges (gRPC Controller, ttrpc Task service) turn a
class into a status on the wire; the numbers of `Code` are those of google.rpc.Code.
"""

from __future__ import annotations

import enum
import errno
from typing import ClassVar


class Code(enum.IntEnum):
    """Canonical status codes (google/rpc/code.proto), shared by gRPC and ttrpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class SandboxdError(Exception):
    """Base of all errors that reach an operator; its text says what failed, on what, and what to do."""

    code: ClassVar[Code] = Code.UNKNOWN


class InvalidArgument(SandboxdError):
    code = Code.INVALID_ARGUMENT


class NotFound(SandboxdError):
    code = Code.NOT_FOUND


class AlreadyExists(SandboxdError):
    code = Code.ALREADY_EXISTS


class PermissionDenied(SandboxdError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(SandboxdError):
    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(SandboxdError):
    code = Code.FAILED_PRECONDITION


class Unimplemented(SandboxdError):
    code = Code.UNIMPLEMENTED


class Internal(SandboxdError):
    code = Code.INTERNAL


class Unavailable(SandboxdError):
    code = Code.UNAVAILABLE


class DeadlineExceeded(SandboxdError):
    code = Code.DEADLINE_EXCEEDED


_CLASSES: dict[int, type[SandboxdError]] = {}


def error_of(code: int, text: str) -> SandboxdError:
    """Return the error that a peer has reported with a status code, of the class that `status_of` had it from."""
    if not _CLASSES:
        _CLASSES.update(
            (kind.code, kind) for kind in SandboxdError.__subclasses__() if kind.__module__ == __name__
        )
    return _CLASSES.get(code, Internal)(text)


def status_of(error: BaseException) -> tuple[Code, str]:
    """Return the code and text with which an edge reports an error; anything foreign is INTERNAL, never a traceback."""
    if isinstance(error, SandboxdError):
        return error.code, str(error)
    if isinstance(error, TimeoutError):
        return Code.DEADLINE_EXCEEDED, str(error) or "timed out"
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return Code.RESOURCE_EXHAUSTED, str(error)
    return Code.INTERNAL, f"{type(error).__name__}: {error}"
