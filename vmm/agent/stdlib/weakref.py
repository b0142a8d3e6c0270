"""References that do not keep: those of C, and the set that `_asyncio` keeps tasks in."""

from _weakref import ref
from _weakrefset import WeakSet

__all__ = ["WeakSet", "ref"]
