"""What runs in place of the agent in a machine that is out to harm its host: how, the command of its container says.

It announces itself as an agent does and answers all that makes a pod and a container. When the container is to be
started it does the one thing that the command names.
"""

import ctypes
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

HOST_CID, HOST_PORT, TASK_PORT, STREAM_PORT = 2, 1025, 1024, 1026
REQUEST, RESPONSE = 1, 2
SHARE = "/run/share"

libc = ctypes.CDLL(None, use_errno=True)


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes | int) -> bytes:
    """One field of a message (protobuf's encoding)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and values of those that have a length."""
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(message):
        key = number()
        size = number()
        if key & 7 == 2:
            yield key >> 3, message[position : position + size]
            position += size


def frame(stream: int, kind: int, data: bytes) -> bytes:
    return struct.pack(">IIBB", len(data), stream, kind, 0) + data


def receive(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ConnectionResetError
    return data


def receive_frame(connection: socket.socket) -> tuple[int, bytes]:
    size, stream, _, _ = struct.unpack(">IIBB", receive(connection, 10))
    return stream, receive(connection, size) if size else b""


# Paths that an engine would remove, if they reached it: stdin, stdout, stderr. The process is created (4).
STATE = field(4, 1) + field(5, b"/etc/passwd") + field(6, b"/etc/shadow") + field(7, b"/etc/group")


def end_program(_: socket.socket, __: int) -> None:
    os._exit(1)


LIES: dict[str, Callable[[socket.socket, int], object]] = {
    "oversized": lambda connection, stream: connection.sendall(frame(stream, RESPONSE, bytes(1 << 20))),
    "absurd": lambda connection, stream: connection.sendall(struct.pack(">IIBB", 0xFFFFFFFF, stream, 2, 0)),
    "stranger": lambda connection, _: connection.sendall(frame(9999, RESPONSE, b"")),
    "asks": lambda connection, stream: connection.sendall(frame(stream, REQUEST, b"")),
    "garbage": lambda connection, stream: connection.sendall(frame(stream, RESPONSE, field(2, b"\xff"))),
    "hangs-up": lambda connection, _: connection.shutdown(socket.SHUT_RDWR),
    "ends": end_program,
}


def mount(kind: str, source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {source}: {os.strerror(ctypes.get_errno())}")


def serve(connection: socket.socket) -> None:
    while True:
        stream, data = receive_frame(connection)
        request = dict(fields(data))
        method, payload = request[2].decode(), request.get(3, b"")
        if method == "Configure":
            mount("virtiofs", "pod", SHARE)
        if method == "Start":
            container = dict(fields(payload))[1].decode()
            with open(f"{SHARE}/{container}/config.json", encoding="utf-8") as file:
                LIES[json.load(file)["process"]["args"][0]](connection, stream)
        elif method == "State":
            connection.sendall(frame(stream, RESPONSE, field(2, STATE)))
        elif method != "Wait":
            connection.sendall(frame(stream, RESPONSE, b""))


def open_stream(connection: socket.socket) -> None:
    while receive(connection, 1) != b"\n":
        pass
    connection.sendall(b"OK\n")
    connection.recv(1)


def listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    return listener


def accept(listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
    def hear(connection: socket.socket) -> None:
        try:
            talk(connection)
        except OSError as error:
            print(f"guest: {error}", flush=True)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=hear, args=(connection,)).start()


def announce() -> socket.socket:
    """Connect to the host, as soon as there is a device."""
    while True:
        try:
            connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            connection.connect((HOST_CID, HOST_PORT))
            break
        except OSError:
            time.sleep(0.02)
    announcement = field(1, 1)
    request = field(1, b"sandboxd.agent.v1.Host") + field(2, b"Announce") + field(3, announcement)
    connection.sendall(frame(1, REQUEST, request))
    receive_frame(connection)
    return connection


def main() -> None:
    mount("proc", "proc", "/proc")
    mount("tmpfs", "tmpfs", "/run")
    threading.Thread(target=accept, args=(listen(STREAM_PORT), open_stream)).start()
    tasks = listen(TASK_PORT)
    with announce():
        accept(tasks, serve)


if __name__ == "__main__":
    main()
