"""One virtual machine: the QEMU that scripts/build-node brings, without hardware virtualization, driven through QMP."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.node.channel import Channel

AGENT_PORT = 1234
MEMORY_MIB = 2048
PROCESSORS = 2
KERNEL_PARAMETERS = "console=ttyS0 net.ifnames=0 mitigations=off reboot=t panic=-1"
SOCKET_TIMEOUT_S = 60.0

# A state can be loaded by the same program with the same devices alone: this is part of a template's key.
# fmt: off
DEVICES = (
    "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "EPYC,-vgif",
    "-smp", str(PROCESSORS), "-m", str(MEMORY_MIB), "-no-reboot", "-nodefaults", "-no-user-config", "-display", "none",
    "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net,romfile=",
    "-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
    "-append", KERNEL_PARAMETERS,
)
# fmt: on


def emulator(image: Path) -> list[str]:
    """Return the command of the QEMU beside a disk, which needs a newer libc than this machine may have.

    :raise RuntimeError: it has no loader.
    """
    tree = image / "emulator"
    libraries = tree / "libraries"
    loader = next(libraries.glob("ld-linux-*"), None)
    if loader is None:
        raise RuntimeError(f"{libraries} has no ld-linux-*: build the node again (scripts/build-node)")
    command = [str(loader), "--library-path", str(libraries), str(tree / "qemu-system-x86_64")]
    return [*command, "-L", str(tree / "qemu"), "-L", str(tree / "seabios")]


class Machine:
    """Boots from `image` (scripts/build-node), or goes on from a state that `save` has written there.

    With `keep` its disk is that of the image; otherwise what it writes is lost with it. Raises RuntimeError with
    QEMU's words if it cannot start.
    """

    def __init__(self, image: Path, *, state: Path | None = None, keep: bool = False) -> None:
        # Short, as it holds a unix socket.
        self.directory = Path(tempfile.mkdtemp(prefix="sandboxd-node-"))
        self._log = self.directory / "qemu.log"
        self.console = self.directory / "console.log"
        command = [
            *emulator(image), "-name", "sandboxd-node", *DEVICES,
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
            "-serial", f"file:{self.console}",
            "-drive", f"file={image}/root.ext4,format=raw,if=none,id=disk,cache=unsafe"
                      + ("" if keep else ",snapshot=on"),
            # The kernel chooses the port; nothing leaves the node.
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:{AGENT_PORT}",
            "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"),
        ]  # fmt: skip
        if state is not None:
            command += ["-incoming", f"exec:cat {state}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._connect()
            if state is not None:
                self._until("query-status", lambda status: status["status"] != "inmigrate")
                self.execute("cont")
            self.channel = Channel(self._port())
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """Send a QMP command and return its answer; RuntimeError if it fails."""
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while line := self._qmp.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{command}: QEMU is gone\n{self.evidence()}")

    def save(self, state: Path) -> None:
        """Write what the machine is now to a file, and leave it stopped."""
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.execute("migrate", uri=f"exec:cat >{state}")
        progress = self._until(
            "query-migrate", lambda progress: progress["status"] in ("completed", "failed")
        )
        if progress["status"] != "completed":
            raise RuntimeError(f"the machine's state was not saved: {progress}")

    def evidence(self, lines: int = 60) -> str:
        """The ends of QEMU's own words and of the console."""
        parts = []
        for log in (self._log, self.console):
            if log.exists():
                # A warning for each feature of the model that is not emulated.
                text = [
                    line for line in log.read_text(errors="replace").splitlines() if "TCG doesn't" not in line
                ]
                parts.append("\n".join([f"--- {log.name}", *text[-lines:]]))
        return "\n".join(parts)

    def close(self) -> None:
        """End it and remove what it left. Idempotent."""
        for name in ("_qmp", "_socket"):
            with contextlib.suppress(AttributeError, OSError):
                getattr(self, name).close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def quit(self) -> None:
        """End it in order, so that all that it wrote is in its disk."""
        self.execute("quit")
        self._process.wait(timeout=SOCKET_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SOCKET_TIMEOUT_S)
        deadline = time.monotonic() + SOCKET_TIMEOUT_S
        while True:
            try:
                self._socket.connect(f"{self.directory}/qmp")
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"QEMU did not start\n{self.evidence()}") from None
                time.sleep(0.01)
        self._qmp = self._socket.makefile("rw", encoding="utf-8")
        self._qmp.readline()
        self.execute("qmp_capabilities")

    def _until(self, query: str, ready: Any) -> dict[str, Any]:
        while True:
            answer: dict[str, Any] = self.execute(query)
            if ready(answer):
                return answer
            time.sleep(0.02)

    def _port(self) -> int:
        table = self.execute("human-monitor-command", **{"command-line": "info usernet"})
        found = re.search(rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{AGENT_PORT}\b", table)
        if found is None:
            raise RuntimeError(f"no forwarded port in\n{table}")
        return int(found[1])


def missing_programs(programs: Sequence[str] = ("mmdebstrap", "mke2fs", "xz", "busybox")) -> list[str]:
    """Return what a node needs and this machine lacks."""
    return [program for program in programs if shutil.which(program) is None]
