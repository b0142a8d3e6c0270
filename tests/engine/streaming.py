"""An interactive exec or attach, as kubectl has it: CRI's streaming protocol over a WebSocket (RFC 6455).

Sub-protocol `v4.channel.k8s.io` (k8s.io/apimachinery, remotecommand): the first byte of a message is the channel. It
has no word for the end of the input, and who hangs up has his command killed: for that there is `exec_piped`.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from common.linux import _libc
from common.linux.namespaces import enter
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.engine.engine import ENGINE_PROGRAMS, Engine

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_BINARY, _CLOSE_FRAME, _PING, _PONG = 2, 8, 9, 10
PROTOCOL = "v4.channel.k8s.io"
TIMEOUT_S = 20.0
_serial = itertools.count(1)


class Stream:
    """One session. `output` is what has come of both outputs so far; every wait ends after 20 s.

    Raises ConnectionError when the engine refuses or hangs up, TimeoutError when what is waited for does not come.
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self.output = bytearray()
        self.exit_code: int | None = None
        self._received = bytearray()
        self._socket = _connect(engine, url)
        try:
            self._shake_hands(url)
        except BaseException:
            self._socket.close()
            raise

    def write(self, data: bytes) -> None:
        """Send to standard input."""
        self._send(bytes([STDIN]) + data)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the terminal, in characters."""
        self._send(bytes([RESIZE]) + json.dumps({"Width": width, "Height": height}).encode())

    def expect(self, text: bytes) -> None:
        """Wait until the output since the last `expect` contains a text, and drop it up to there."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output:
            if self.exit_code is not None or not self._receive(deadline):
                raise AssertionError(
                    f"ended ({self.exit_code}) without {text!r}, after {bytes(self.output)!r}"
                )
        del self.output[: self.output.index(text) + len(text)]

    def ask(self, line: bytes, answer: bytes, again_s: float = 1.0) -> None:
        """Send a line, again and again, until the answer has come: of an attached container's output the engine sends
        what is written from some moment on, and may have passed the line on before that."""
        deadline = time.monotonic() + TIMEOUT_S
        while answer not in self.output:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {answer!r} for {line!r}, but {bytes(self.output)!r}")
            self.write(line)
            with contextlib.suppress(TimeoutError):
                while answer not in self.output and self._receive(time.monotonic() + again_s):
                    pass
        del self.output[: self.output.index(answer) + len(answer)]

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.exit_code is None:
            if not self._receive(deadline):
                raise ConnectionError("the engine hung up without an exit code")
        return self.exit_code

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _shake_hands(self, url: str) -> None:
        parts = urlsplit(url)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {parts.path}?{parts.query} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            f"Sec-WebSocket-Protocol: {PROTOCOL}",
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        deadline = time.monotonic() + TIMEOUT_S
        while b"\r\n\r\n" not in self._received:
            if not self._fill(deadline):
                raise ConnectionError(f"no WebSocket: {bytes(self._received)!r}")
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(f"no WebSocket: {head!r}")
        self._received = bytearray(rest)

    def _send(self, message: bytes, opcode: int = _BINARY) -> None:
        # A client must mask; a mask of zeros leaves the message as it is.
        length = len(message)
        size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
        self._socket.sendall(bytes([0x80 | opcode]) + size + b"\0\0\0\0" + message)

    def _receive(self, deadline: float) -> bool:
        """Handle one message; False once the engine has hung up."""
        while (message := self._next_message()) is None:
            if not self._fill(deadline):
                return False
        opcode, payload = message
        if opcode == _CLOSE_FRAME:
            return False
        if opcode == _PING:
            self._send(payload, _PONG)
        elif payload[:1] in (bytes([STDOUT]), bytes([STDERR])):
            self.output += payload[1:]
        elif payload[:1] == bytes([ERROR]):
            self.exit_code = _exit_code(payload[1:])
        return True

    def _next_message(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return None
        opcode, payload = data[0] & 0x0F, bytes(data[start : start + length])
        del data[: start + length]
        return opcode, payload

    def _fill(self, deadline: float) -> bool:
        readable, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise TimeoutError(f"the engine sent nothing more after {bytes(self.output)!r}")
        data = self._socket.recv(65536)
        self._received += data
        return bool(data)


def exec_stream(engine: Engine, container: str, *command: str, tty: bool = False) -> Stream:
    """Run a command in a container with its standard input open."""
    request = pb.ExecRequest(
        container_id=container, cmd=command, tty=tty, stdin=True, stdout=True, stderr=not tty
    )
    answer: pb.ExecResponse = engine.cri.runtime.Exec(request, timeout=TIMEOUT_S)
    return Stream(engine, answer.url)


def exec_piped(engine: Engine, container: str, *command: str) -> subprocess.Popen[bytes]:
    """Run a command with pipes for its input and output, whose ends are told apart (containerd's own client)."""
    program = [str(ENGINE_PROGRAMS / "ctr"), "--namespace", "k8s.io", "tasks", "exec"]
    arguments = ["--exec-id", f"piped-{next(_serial)}", container, *command]
    return subprocess.Popen(
        engine.namespaces.command([*program, *arguments]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def attach_stream(engine: Engine, container: str, *, tty: bool = False) -> Stream:
    """Attach to a container that has been created with its standard input open."""
    request = pb.AttachRequest(container_id=container, tty=tty, stdin=True, stdout=True, stderr=not tty)
    answer: pb.AttachResponse = engine.cri.runtime.Attach(request, timeout=TIMEOUT_S)
    return Stream(engine, answer.url)


def _connect(engine: Engine, url: str) -> socket.socket:
    """Connect to an address in the engine's network: a socket belongs to where it was made."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None

    def make() -> socket.socket:
        enter(f"/proc/{engine.namespaces.first_pid}/ns/net", _libc.CLONE_NEWNET)
        return socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)

    return _libc.run_in_own_thread(make)


def _exit_code(status: bytes) -> int:
    """The exit code in a `metav1.Status`; raises AssertionError with the status if it is another failure."""
    fields = json.loads(status)
    if fields.get("status") == "Success":
        return 0
    for cause in fields.get("details", {}).get("causes", []):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise AssertionError(f"the engine reports {fields}")
