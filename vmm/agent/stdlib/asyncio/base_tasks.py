"""How `_asyncio` shows a task; stacks are shown by no one here."""

from asyncio.base_futures import _future_repr as _task_repr

__all__ = ["_task_get_stack", "_task_print_stack", "_task_repr"]


def _task_get_stack(task: object, limit: object) -> list[object]:
    return []


def _task_print_stack(task: object, limit: object, file: object) -> None:
    return None
