"""What both ends of docs/agent-protocol.md must agree on beside the messages: ports, paths, the opening of a stream.

No I/O, and nothing that takes time to import: the agent loads it while its VM boots.
"""

from __future__ import annotations

from typing import Final

from common.errors import InvalidArgument
from common.identifiers import check_identifier

PROTOCOL: Final = 1

HOST_PORT: Final = 1025
"""Where the guest connects to the host, unless its kernel command line says `sandboxd.host_port=`."""
TASK_PORT: Final = 1024
"""ttrpc in the guest: the Task service and the Sandbox service."""
STREAM_PORT: Final = 1026
"""Streams in the guest, each opened by one line."""

HOST_PORT_PARAMETER: Final = "sandboxd.host_port"

HOST_SERVICE: Final = "sandboxd.agent.v1.Host"
SANDBOX_SERVICE: Final = "sandboxd.agent.v1.Sandbox"
TASK_SERVICE: Final = "containerd.task.v3.Task"
STREAM_END_TOPIC: Final = "/streams/end"

WRITE_LIMIT_BYTES: Final = 32768
"""Packets larger than this are lost between some guest kernels and some hosts."""

RUN_DIRECTORY: Final = "/run/sandboxd"
SHARES_DIRECTORY: Final = f"{RUN_DIRECTORY}/shares"

STREAM_SCHEME: Final = "stream:"
OPENING_LIMIT_BYTES: Final = 128
ACCEPTED: Final = b"OK\n"
_STREAM: Final = "STREAM"
_PORT: Final = "PORT"


def share_path(tag: str) -> str:
    """Return where in the guest the share with this tag is mounted."""
    return f"{SHARES_DIRECTORY}/{check_identifier('share', tag)}"


def stream_uri(stream_id: str) -> str:
    """Return how a Create or Exec request to the agent names a stream."""
    return STREAM_SCHEME + check_identifier("stream", stream_id)


def stream_of(uri: str) -> str:
    """Return the id in what `stream_uri` has made.

    :raise InvalidArgument: it names something else.
    """
    if not uri.startswith(STREAM_SCHEME):
        raise InvalidArgument(f"{uri[:100]!r} is not a stream: expected {STREAM_SCHEME}ID")
    return check_identifier("stream", uri.removeprefix(STREAM_SCHEME))


def open_stream_line(stream_id: str) -> bytes:
    """Return the line that makes a connection to `STREAM_PORT` the stream of this id."""
    return f"{_STREAM} {check_identifier('stream', stream_id)}\n".encode()


def open_port_line(port: int) -> bytes:
    """Return the line that makes a connection to `STREAM_PORT` one to a TCP port of the pod."""
    return f"{_PORT} {port:d}\n".encode()


def parse_opening(line: bytes) -> str | int:
    """Return the stream id or the TCP port that an opening line (without its end) asks for.

    :raise InvalidArgument: it is malformed.
    """
    word, _, argument = line.decode("ascii", "replace").partition(" ")
    if word == _STREAM:
        return check_identifier("stream", argument)
    if word == _PORT and argument.isascii() and argument.isdigit() and 0 < int(argument[:6]) < 65536:
        return int(argument[:6])
    raise InvalidArgument(f"{line[:60]!r} opens nothing: expected STREAM ID or PORT NUMBER")
