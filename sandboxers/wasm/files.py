"""The files of a container's directory that the daemon and its module processes share.

config.json                  the specification
<process>.request.json       the process of an exec, while that is being started
<process>.gate               a FIFO at which a process waits for a byte...
<process>.open               ...renamed to this just before the byte is written: from then on it has been started
<process>.pid.json           the record of a process

where <process> is "first" or "exec-<id>". No file's end is that of another kind: an id may have dots.
"""

from __future__ import annotations

from typing import Final

from common.oci.bundle import CONFIG_FILE as CONFIG_FILE

_FIRST: Final = "first"


class ProcessFiles:
    """The paths of one process: the container's first (empty `exec_id`), or an exec."""

    __slots__ = ("gate", "open_gate", "record", "request")

    def __init__(self, directory: str, exec_id: str = "") -> None:
        path = f"{directory}/{f'exec-{exec_id}' if exec_id else _FIRST}"
        self.request = f"{path}.request.json" if exec_id else ""
        self.gate = f"{path}.gate"
        self.open_gate = f"{path}.open"
        self.record = f"{path}.pid.json"
