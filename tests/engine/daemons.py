"""Daemons seen from outside: which process serves, and whether it does."""

import contextlib
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.linux.procs import peer_credentials
from tests.children import children_of

# gRPC opens and closes these as it likes, and how many callers there are is the callers' affair; the log of starts is
# open from the first one on.
UNSTABLE = re.compile(r"^anon_inode:\[event|^socket:|/\.starts ")


def daemon_below(supervisor: int) -> int:
    """Return the pid of a supervisor's daemon; raises ProcessLookupError while there is none."""
    for child in children_of(supervisor):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A child that has not executed its program yet still looks like the supervisor.
        if b"--config" in words and b"--supervise" not in words:
            return child
    raise ProcessLookupError(f"the supervisor {supervisor} has no daemon at present")


def listener_of(path: Path) -> int:
    """Return the pid of the process that listens on a unix socket, 0 if nobody does.

    It may have died a moment ago: what holds its FIFOs (`common.linux.fd_holder`) has yet to close the rest.
    """
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return 0
        return peer_credentials(client).pid


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open, by whatever path."""
    file = path.stat()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(fd.stat(), file):
                return True
    return False


def descriptors(pid: int) -> Iterator[str]:
    """A process's descriptors by kind, numbered, so that one more of a kind is a difference."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        kinds[re.sub(r"(?<=:\[)\d+(?=\]$)", "", target)] += 1
    for kind, count in kinds.items():
        yield from (f"{kind} number {number + 1}" for number in range(count))


def stable_descriptors(pid: int) -> set[str]:
    """Those of which a daemon at rest has as many after a pod as before."""
    return {kind for kind in descriptors(pid) if not UNSTABLE.search(kind)}
