"""Runs commands inside of the node for whoever connects: tests/node/channel.py is the other side.

A connection carries one command: a line of JSON (argv, cwd, env, size of the input), the input; back come frames of
a kind (`o` output, `x` exit status), a length and that many bytes. A connection that ends early kills the command.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socketserver
import struct
import subprocess
import tempfile

PORT = 1234
CHUNK = 1 << 16


class Command(socketserver.StreamRequestHandler):
    """One command."""

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        with tempfile.TemporaryFile() as given:
            left = request["size"]
            while left:
                data = self.rfile.read(min(left, CHUNK))
                if not data:
                    return
                left -= len(data)
                given.write(data)
            given.seek(0)
            try:
                process = subprocess.Popen(
                    request["argv"],
                    cwd=request["cwd"],
                    env={**os.environ, **request["env"]},
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._frame(b"o", f"{error}\n".encode())
                self._frame(b"x", b"127")
                return
        self._carry(process)
        self._frame(b"x", str(process.wait()).encode())

    def _carry(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            ready, _, _ = select.select([output, self.connection], [], [])
            if output in ready:
                data = os.read(output, CHUNK)
                if not data:
                    return
                self._frame(b"o", data)
            elif not self.connection.recv(1):
                os.killpg(process.pid, signal.SIGKILL)
                return

    def _frame(self, kind: bytes, data: bytes) -> None:
        self.wfile.write(kind + struct.pack("!I", len(data)) + data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("", PORT), Command).serve_forever()
