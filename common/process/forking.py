"""A process that forks others on request: what is costly to load is loaded once, before.

It has one thread and never runs anything of a request itself, so that it can go on forking (fork(2)).
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Callable, Collection
from typing import NoReturn

from common.linux.clone import fork_sibling
from common.linux.namespaces import children_in_pid_namespace

_FIRST_OTHER_FD = 3


class Forker:
    """Forks children of our parent."""

    def __init__(self) -> None:
        # What is loaded stays: a collection in a child would touch, and so copy, every page of it.
        gc.collect()
        gc.disable()
        gc.freeze()

    def fork(
        self,
        run: Callable[[], NoReturn],
        keep_fds: Collection[int],
        *,
        new_pid_namespace: bool = False,
        join_pid_namespace: int = -1,
    ) -> int:
        """Let a child run `run` in a session of its own, and return its pid as we see it.

        :param keep_fds: the descriptors that it has beside the standard ones.
        :param join_pid_namespace: a descriptor of a process or PID namespace whose PID namespace it shall be in.
        :raise OSError: the kernel refuses.
        """
        with contextlib.ExitStack() as stack:
            if join_pid_namespace >= 0:
                stack.enter_context(children_in_pid_namespace(join_pid_namespace))
            pid = fork_sibling(new_pid_namespace=new_pid_namespace)
            if pid == 0:
                # Whatever happens in there, the server's code after this must not run twice.
                try:
                    close_all_but(keep_fds)
                    os.setsid()
                    run()
                finally:
                    os._exit(1)
        return pid


def close_all_but(keep_fds: Collection[int]) -> None:
    """Close all descriptors but these and the standard ones."""
    first = _FIRST_OTHER_FD
    for fd in sorted(keep_fds):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
