"""The list of a pod's tasks, which some engines send with Update before each Create and Exec, and after each end.

iSulad and a fork of containerd announce so what they are about to make, as JSON under `sandbox.extensions["tasks"]`;
they never say that an exec may be forgotten but by leaving it out. Source: iSulad contract section 1.6.
"""

from __future__ import annotations

import json
from typing import Any, Final

from common.errors import InvalidArgument
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api

TASKS_FIELD: Final = "extensions.tasks"
_EXTENSION: Final = "tasks"

TaskList = dict[str, frozenset[str]]
"""The ids of execs by the id of their container."""


def parse_task_list(request: api.ControllerUpdateRequest) -> TaskList:
    """Return what the list of an Update names; whatever else it says of a task comes again with its Create or Exec.

    :raise InvalidArgument: there is no list, or it is not of the right shape.
    """
    what = f"the update of sandbox {request.sandbox_id}"
    if _EXTENSION not in request.sandbox.extensions:
        raise InvalidArgument(f"{what} names the field {TASKS_FIELD}, but has no such extension")
    try:
        document = json.loads(request.sandbox.extensions[_EXTENSION].value)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what}: its tasks are not JSON: {error}") from error
    try:
        return {
            str(task["task_id"]): frozenset(
                str(process["exec_id"]) for process in _entries(task, "processes")
            )
            for task in _entries(document, "tasks")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"{what}: its tasks are not of the right shape: {error!r}") from error


def _entries(parent: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = parent.get(key) or []
    if not isinstance(entries, list):
        raise TypeError(f"{key} is no list")
    return entries
