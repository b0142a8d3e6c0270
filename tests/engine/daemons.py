"""Daemons seen from outside: which process serves, and whether it does."""

import socket
from pathlib import Path


def daemon_below(supervisor: int) -> int:
    """Return the pid of a supervisor's daemon; raises ProcessLookupError while there is none."""
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A child that has not executed its program yet still looks like the supervisor.
        if b"--config" in words and b"--supervise" not in words:
            return int(child)
    raise ProcessLookupError(f"the supervisor {supervisor} has no daemon at present")


def listens(path: Path) -> bool:
    """Tell whether anybody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
