"""The errors of the package, told apart by who is at fault.

    Exception
    ├── ProtocolError             never raised itself
    │   ├── LocalProtocolError    this side asked for a frame the protocol forbids; nothing was sent
    │   └── RemoteProtocolError   the peer broke the protocol; its connection cannot be trusted any more
    ├── StatusError               a call was answered with a code other than OK
    └── ConnectionLost            (a ConnectionError) the connection ended before the answer came

Any other exception out of the codec is a bug of this package.
"""

from __future__ import annotations

import enum


class StatusCode(enum.IntEnum):
    """The codes that travel in `google.rpc.Status.code` (google/rpc/code.proto)."""

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
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ProtocolError(Exception):
    """Base of the two protocol errors; says nothing about whose fault it is, so it is never raised itself."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """This side asked for something the protocol forbids. The connection is unharmed."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. The connection must be closed."""


class StatusError(Exception):
    """A status other than OK: raised by handlers to choose one, and by the client when it receives one."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        try:
            name = StatusCode(self.code).name
        except ValueError:
            name = f"code {self.code}"
        return f"{name}: {self.message}"


class ConnectionLost(ConnectionError):
    """The connection ended before the answer came: whether the peer carried the call out is unknown."""
