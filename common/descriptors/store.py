"""Where descriptors are kept that must outlive this process (sd_notify(3), FDSTORE).

A name stands for a group of descriptors and is all that the keeper knows of them; what they are is in the record
that holds the name, and which is which is told by the descriptor itself (its link in /proc/self/fd, its flags).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from common.descriptors.names import name_of


class DescriptorStore(Protocol):
    """Keeps groups of descriptors by names of at most 8 characters: a letter for the kind, a serial number."""

    @property
    def keeps(self) -> bool:
        """Whether anybody is there to keep them."""
        ...

    def new_name(self, kind: str) -> str:
        """Return a name that no group has, nor has had since the boot; `kind` is one letter."""
        ...

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Let copies of these be kept under the name, beside those that are; waits a moment at most, never raises.

        What is kept already, under whatever name, is not kept twice (sd_notify(3) drops it).
        """
        ...

    def remove(self, name: str) -> None:
        """Let all that is kept under the name be closed; waits a moment at most, never raises."""
        ...

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back when our death does not matter any more to what was put until now: at once, normally."""
        ...

    def take(self, name: str) -> list[int]:
        """Return what an earlier daemon has put under the name, once: the caller owns these descriptors.

        They are close-on-exec, in no particular order, and copies stay kept until `remove`.
        """
        ...

    def untaken(self) -> list[str]:
        """Return the names of the groups of an earlier daemon that were not taken."""
        ...


class NoStore:
    """Keeps nothing: nobody is there who would (`DescriptorStore`)."""

    __slots__ = ("_serial",)
    keeps = False

    def __init__(self) -> None:
        self._serial = 0

    def new_name(self, kind: str) -> str:
        """Return a name that no group has."""
        self._serial += 1
        return name_of(kind, self._serial)

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Keep nothing."""

    def remove(self, name: str) -> None:
        """Nothing is kept."""

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back at once."""
        callback()

    def take(self, name: str) -> list[int]:
        """Return nothing."""
        return []

    def untaken(self) -> list[str]:
        """Return nothing."""
        return []


async def all_sent(store: DescriptorStore) -> None:
    """Return when our death does not matter any more to what was put until now: at once, normally."""
    sent = asyncio.Event()
    store.when_sent(sent.set)
    await sent.wait()
