"""What `_asyncio` takes for a coroutine when the type is not the interpreter's own."""

from collections.abc import Coroutine
from types import CoroutineType


def iscoroutine(obj: object) -> bool:
    """Tell whether a task can drive an object."""
    return isinstance(obj, (CoroutineType, Coroutine))
