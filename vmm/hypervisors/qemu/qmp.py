"""The QEMU Machine Protocol without I/O: bytes in, messages out (QEMU, docs/interop/qmp-spec).

The server greets, the client leaves the negotiation with `qmp_capabilities`; then each command gets one reply, and
events come in between. A message is a JSON object on a line of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

LONGEST_MESSAGE_BYTES = 1024 * 1024
"""More than the answer to any command that this project sends (the longest is a few KiB)."""


class ProtocolError(Exception):
    """What came is not QMP; the connection is of no use any more."""


class Greeting(NamedTuple):
    """The first message: who speaks."""

    version: str


class Reply(NamedTuple):
    """The answer to the command with this number; `error` is QEMU's own text, or empty."""

    number: int
    value: Any
    error: str


class Event(NamedTuple):
    """Something has happened to the machine."""

    name: str
    data: dict[str, Any]


Message = Greeting | Reply | Event


def encode(number: int, command: str, arguments: Mapping[str, Any]) -> bytes:
    """Return a command as it goes to the wire; `number` comes back in its reply."""
    message: dict[str, Any] = {"execute": command, "id": number}
    if arguments:
        message["arguments"] = arguments
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Cuts a stream into messages. After a ProtocolError it must not be used any more."""

    __slots__ = ("_greeted", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._greeted = False

    def feed(self, data: bytes) -> list[Message]:
        """Take what has arrived and return the messages that it completes.

        :raise ProtocolError: it is not JSON, not QMP, too long, or the greeting is not first.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_MESSAGE_BYTES:
            raise ProtocolError(f"a message of more than {LONGEST_MESSAGE_BYTES} bytes")
        return [self._message(line) for line in lines if line.strip()]

    def _message(self, line: bytes) -> Message:
        if len(line) > LONGEST_MESSAGE_BYTES:
            raise ProtocolError(f"a message of more than {LONGEST_MESSAGE_BYTES} bytes")
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise ProtocolError(f"not JSON: {line[:80]!r}") from None
        if not isinstance(fields, dict):
            raise ProtocolError(f"not an object: {line[:80]!r}")
        if ("QMP" in fields) == self._greeted:
            raise ProtocolError("a second greeting" if self._greeted else f"no greeting: {line[:80]!r}")
        self._greeted = True
        try:
            return _message_of(fields)
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"neither greeting, reply nor event: {line[:80]!r}") from None


def _message_of(fields: dict[str, Any]) -> Message:
    if "QMP" in fields:
        version = fields["QMP"]["version"]["qemu"]
        return Greeting(".".join(str(int(version[part])) for part in ("major", "minor", "micro")))
    if "event" in fields:
        return Event(_typed(fields["event"], str), _typed(fields.get("data", {}), dict))
    # Without a number QEMU has not understood what it answers, which it tells in plain words.
    number = _typed(fields.get("id", 0), int)
    if "error" in fields:
        return Reply(number, None, _typed(fields["error"]["desc"], str) or "no reason given")
    return Reply(number, fields["return"], "")


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
