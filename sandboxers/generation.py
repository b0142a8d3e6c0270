"""Which daemon this is: how many have served a state directory since the boot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from common.errors import SandboxdError
from common.log import get_logger
from common.records import read_record, write_record

_FILE: Final = ".generation.json"

log = get_logger()


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """The daemons so far, the one that runs included."""

    VERSION: ClassVar[int] = 1

    generation: int


def next_generation(state_dir: str) -> int:
    """Return the number of this daemon, 1 for the first one since the boot, and put it on record."""
    path = f"{state_dir}/{_FILE}"
    before = 0
    try:
        record, of_this_boot = read_record(path, GenerationRecord)
        before = record.generation if of_this_boot else 0
    except FileNotFoundError:
        pass
    except SandboxdError as error:
        log.warning("generation.unreadable", error=error)
    try:
        write_record(path, GenerationRecord(before + 1))
    except OSError as error:
        log.error("generation.not_recorded", error=error)
    return before + 1
