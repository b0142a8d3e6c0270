"""The PID namespace that the containers of a pod share, if the pod asks for one: kept by an init that only sleeps."""

from __future__ import annotations

from common.linux import _libc
from common.linux._holder_main import Init
from common.linux.pod_init import pod_init_elf
from common.log import get_logger
from common.process.exits import ExitStatus, ExitWatcher

log = get_logger()


def make_pid_namespace(exits: ExitWatcher) -> str:
    """Return the path by which containers join a new PID namespace. Raises OSError."""

    def start() -> int:
        # Only what this thread starts from now on is in the new namespace, as its first process.
        _libc.unshare(_libc.CLONE_NEWPID)
        init = Init(pod_init_elf())
        init.release()
        return init.pid

    with exits.adoption():
        pid = _libc.run_in_own_thread(start)
        exits.watch(pid, _on_death)
    return f"/proc/{pid}/ns/pid"


def _on_death(status: ExitStatus) -> None:
    """The kernel has killed all containers with it, whose exits tell the host."""
    log.error("sandbox.init_died", exit_code=status.code)
