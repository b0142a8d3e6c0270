"""What stays kept for processes that a daemon was about to make when it died.

Until such a process is made after all, or never will be, a descriptor store keeps the ends of the FIFOs that it was to
be given: an engine that once saw the end of the output does not read on. Which these are is on record, for the daemon
that undoes the rest may die, too, before the engine's request is replayed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import ClassVar

from common.descriptors.store import DescriptorStore
from common.log import get_logger
from common.records import read_record, write_record

RECORD_FILE = "unmade.json"

log = get_logger()


@dataclass(frozen=True, slots=True)
class UnmadeRecord:
    """The names of what is kept, by "<container>/<exec>" (the exec is empty for a container's first process): several
    where it was undone several times."""

    VERSION: ClassVar[int] = 1

    names: dict[str, list[str]]


class Unmade:
    """Those of one pod."""

    __slots__ = ("_names", "_path", "_store")

    def __init__(self, directory: str, store: DescriptorStore) -> None:
        """:param directory: where the record is, the pod's own."""
        self._path = f"{directory}/{RECORD_FILE}"
        self._store = store
        self._names: dict[str, list[str]] | None = None

    def recover(self) -> None:
        """Go on with what an earlier daemon has noted.

        :raise FailedPrecondition, UnreadableRecord: the record cannot be understood.
        """
        try:
            record, of_this_boot = read_record(self._path, UnmadeRecord)
        except FileNotFoundError:
            return
        self._names = {}
        for key, names in record.names.items() if of_this_boot else ():
            for name in names:
                if kept := self._store.take(name):
                    self._names.setdefault(key, []).append(name)
                for fd in kept:
                    os.close(fd)

    def add(self, container_id: str, exec_id: str, name: str) -> None:
        """Note what is kept for a process."""
        self._names = self._names or {}
        self._names.setdefault(f"{container_id}/{exec_id}", []).append(name)
        self._save()

    def knows(self, container_id: str, exec_id: str) -> bool:
        """Tell whether something is kept for a process: then all that it was to be given is."""
        return f"{container_id}/{exec_id}" in (self._names or {})

    def forget(self, container_id: str, exec_id: str = "") -> None:
        """Let go of what is kept for a process, if there is anything."""
        if self._names and (names := self._names.pop(f"{container_id}/{exec_id}", [])):
            self._let_go(names)

    def forget_all(self) -> None:
        """Let go of everything."""
        if self._names:
            names = [name for names in self._names.values() for name in names]
            self._names.clear()
            self._let_go(names)

    def _let_go(self, names: list[str]) -> None:
        for name in names:
            self._store.remove(name)
        self._save()

    def _save(self) -> None:
        """Write the record; without it a daemon that comes later lets go too early, which must not stop this one."""
        try:
            if self._names:
                write_record(self._path, UnmadeRecord(self._names))
            else:
                self._names = None
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
        except OSError as error:
            log.error("unmade.not_recorded", path=self._path, error=error)
