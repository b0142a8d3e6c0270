"""What runs in place of the agent in the hypervisor tests: it does what the host asks, a JSON object a line.

It connects to the host (never the other way round) as soon as it has a vsock device, and again when it is hung up on.
"""

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

HOST_CID, PORT = 2, 1025
CONNECT_PAUSE_S = 0.02
RB_AUTOBOOT, RB_POWER_OFF = 0x01234567, 0x4321FEDC

Request = dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def mount(kind: str, source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {source}: {os.strerror(ctypes.get_errno())}")


def disk_of(serial: str) -> str:
    for path in glob.glob("/sys/block/*/serial"):
        if read(path) == serial:
            return "/dev/" + path.split("/")[3]
    raise FileNotFoundError(serial)


def see(_request: Request) -> dict[str, Any]:
    """The late devices that the guest has now."""
    interfaces = {
        read(path): int(read(f"{os.path.dirname(path)}/mtu"))
        for path in glob.glob("/sys/class/net/e*/address")
    }
    return {
        "disks": [read(path) for path in glob.glob("/sys/block/*/serial") if read(path)],
        "interfaces": interfaces,
        "arguments": read("/proc/cmdline"),
        "root_is_read_only": read("/sys/block/vda/ro") == "1",
    }


def read_file(request: Request) -> Any:
    return read(request["path"])


def list_directory(request: Request) -> Any:
    return sorted(os.listdir(request["path"]))


def device_of(request: Request) -> Any:
    return os.stat(request["path"]).st_dev


def write_file(request: Request) -> None:
    with open(request["path"], "w", encoding="utf-8") as file:
        file.write(request["text"])


def mount_share(request: Request) -> None:
    mount("virtiofs", request["tag"], request["target"])


def unmount(request: Request) -> None:
    if libc.umount2(request["target"].encode(), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_disk(request: Request) -> Any:
    with open(disk_of(request["serial"]), "rb") as file:
        return file.read(request["count"]).decode()


def write_disk(request: Request) -> None:
    with open(disk_of(request["serial"]), "wb") as file:
        file.write(request["text"].encode())
        file.flush()
        os.fsync(file.fileno())


def bring_up(request: Request) -> None:
    """Let an interface send what the kernel sends of its own accord: its IPv6 neighbour discovery."""
    for path in glob.glob("/sys/class/net/e*/address"):
        if read(path) == request["mac"]:
            name = path.split("/")[4]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                fcntl.ioctl(
                    sock, 0x8914, struct.pack("16sh14x", name.encode(), 0x1 | 0x40)
                )  # SIOCSIFFLAGS, up
            return
    raise FileNotFoundError(request["mac"])


def tick(_request: Request) -> None:
    """Show on the console, from now on, that time goes by."""

    def do() -> None:
        while True:
            os.write(1, b"tick\n")
            time.sleep(0.05)

    threading.Thread(target=do).start()


def write_console(request: Request) -> None:
    for _ in range(request["times"]):
        os.write(1, request["text"].encode())


def end(request: Request) -> None:
    """End the machine a moment after the answer."""

    def do() -> None:
        time.sleep(request.get("after_s", 0.05))
        if request["how"] == "panic":
            with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
                file.write("c")
        libc.reboot(ctypes.c_int(RB_POWER_OFF if request["how"] == "off" else RB_AUTOBOOT))

    threading.Thread(target=do).start()


ACTIONS: dict[str, Callable[[Request], Any]] = {
    action.__name__: action
    for action in (
        see, read_file, list_directory, device_of, write_file, mount_share, unmount, read_disk, write_disk, bring_up,
        tick, write_console, end,
    )
}  # fmt: skip


def serve(connection: socket.socket) -> None:
    for line in connection.makefile("r", encoding="utf-8"):
        request = json.loads(line)
        try:
            answer = {"value": ACTIONS[request["do"]](request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")):
        with contextlib.suppress(OSError):
            mount(kind, kind, target)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("guest: running", flush=True)
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
            connection.connect((HOST_CID, PORT))
            serve(connection)
        time.sleep(CONNECT_PAUSE_S)


if __name__ == "__main__":
    main()
