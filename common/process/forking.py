"""A process that forks others on request: what is costly to load is loaded once, before.

It has one thread and never runs anything of a request itself, so that it can go on forking (fork(2)).
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from typing import NoReturn

from common.linux.clone import fork_sibling
from common.linux.namespaces import children_in_pid_namespace


class Forker:
    """Forks children of our parent."""

    def __init__(self) -> None:
        # What is loaded stays: a collection in a child would touch, and so copy, every page of it.
        gc.collect()
        gc.disable()
        gc.freeze()

    def fork(
        self, run: Callable[[], NoReturn], *, new_pid_namespace: bool = False, join_pid_namespace: int = -1
    ) -> int:
        """Let a child run `run`, and return its pid as we see it.

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
                    run()
                finally:
                    os._exit(1)
        return pid
