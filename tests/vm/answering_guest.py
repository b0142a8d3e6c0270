"""What runs in a guest of the hypervisor tests in place of the agent: does what the host asks, a JSON object a line.

It connects to the host (never the other way round) as soon as it has a vsock device, and again when it is hung up on.
"""

import contextlib
import ctypes
import glob
import json
import os
import signal
import socket
import sys
import threading
import time

HOST_CID, PORT = 2, 1025
CONNECT_PAUSE_S = 0.02
RB_AUTOBOOT, RB_POWER_OFF = 0x01234567, 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def mount(kind, source, target):
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {source}: {os.strerror(ctypes.get_errno())}")


def disk_of(serial):
    for path in glob.glob("/sys/block/*/serial"):
        if read(path) == serial:
            return "/dev/" + path.split("/")[3]
    raise FileNotFoundError(serial)


def see(_request):
    """The late devices that the guest has now."""
    interfaces = {read(path): int(read(f"{os.path.dirname(path)}/mtu")) for path in glob.glob("/sys/class/net/e*/address")}
    return {
        "disks": [read(path) for path in glob.glob("/sys/block/*/serial") if read(path)],
        "interfaces": interfaces,
        "arguments": read("/proc/cmdline"),
        "root_is_read_only": read("/sys/block/vda/ro") == "1",
    }


def read_file(request):
    return read(request["path"])


def list_directory(request):
    return sorted(os.listdir(request["path"]))


def device_of(request):
    return os.stat(request["path"]).st_dev


def write_file(request):
    with open(request["path"], "w", encoding="utf-8") as file:
        file.write(request["text"])


def mount_share(request):
    mount("virtiofs", request["tag"], request["target"])


def unmount(request):
    if libc.umount2(request["target"].encode(), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_disk(request):
    with open(disk_of(request["serial"]), "rb") as file:
        return file.read(request["count"]).decode()


def write_disk(request):
    with open(disk_of(request["serial"]), "wb") as file:
        file.write(request["text"].encode())
        file.flush()
        os.fsync(file.fileno())


def bring_up(request):
    """Let an interface send what the kernel sends of its own accord: its IPv6 neighbour discovery."""
    import fcntl
    import struct

    for path in glob.glob("/sys/class/net/e*/address"):
        if read(path) == request["mac"]:
            name = path.split("/")[4]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", name.encode(), 0x1 | 0x40))  # SIOCSIFFLAGS, up
            return
    raise FileNotFoundError(request["mac"])


def now(_request):
    return time.monotonic()


def write_console(request):
    for _ in range(request["times"]):
        os.write(1, request["text"].encode())


def end(request):
    """End the machine a moment after the answer."""

    def do():
        time.sleep(request.get("after_s", 0.05))
        if request["how"] == "panic":
            with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
                file.write("c")
        libc.reboot(ctypes.c_int(RB_POWER_OFF if request["how"] == "off" else RB_AUTOBOOT))

    threading.Thread(target=do).start()


ACTIONS = {
    action.__name__: action
    for action in (
        see, read_file, list_directory, device_of, write_file, mount_share, unmount, read_disk, write_disk, bring_up, now,
        write_console, end,
    )
}  # fmt: skip


def serve(connection):
    for line in connection.makefile("r", encoding="utf-8"):
        request = json.loads(line)
        try:
            answer = {"value": ACTIONS[request["do"]](request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def main():
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
    sys.exit(main())
