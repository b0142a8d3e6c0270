"""The files of a container's directory that the daemon and its module processes share."""

from __future__ import annotations

from typing import Final

from common.oci.spec import CONFIG_FILE as CONFIG_FILE

GATE: Final = "start"
"""A FIFO at which the first process waits for a byte; removed once that is written."""
PROCESS_FILE: Final = "process.json"
"""The record of the first process."""


def exec_file(directory: str, exec_id: str) -> str:
    """Return where the process of an exec stands as JSON while it is being started."""
    return f"{directory}/exec-{exec_id}.json"


def exec_process_file(directory: str, exec_id: str) -> str:
    """Return where the record of the process of an exec is, once it has one."""
    return f"{directory}/exec-{exec_id}.pid.json"
