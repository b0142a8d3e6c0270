"""Commands inside of a node, run from here: the other side is tests/node/root/opt/node/agent.py."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

CONNECT_TIMEOUT_S = 2.0


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it wrote to both outputs."""

    status: int
    output: str


class Channel:
    """Runs commands, each on a connection of its own, so several at once. Every method raises OSError."""

    def __init__(self, port: int) -> None:
        self._port = port

    def run(
        self,
        argv: Sequence[str],
        *,
        given: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        timeout_s: float = 60.0,
        on_output: Callable[[str], None] | None = None,
    ) -> Ended:
        """Run a command to its end; `timeout_s` is how long it may be silent, TimeoutError says that it was."""
        request = {"argv": list(argv), "cwd": cwd, "env": dict(env or {}), "size": len(given)}
        output: list[str] = []
        with socket.create_connection(("127.0.0.1", self._port), CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(json.dumps(request).encode() + b"\n" + given)
            with connection.makefile("rb") as answers:
                while True:
                    head = answers.read(5)
                    if len(head) < 5:
                        raise ConnectionResetError(f"the node hung up on {argv[0]}")
                    kind, size = head[:1], struct.unpack("!I", head[1:])[0]
                    text = answers.read(size).decode(errors="replace")
                    if kind == b"x":
                        return Ended(int(text), "".join(output))
                    output.append(text)
                    if on_output is not None:
                        on_output(text)
