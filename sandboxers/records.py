"""What is on disk about a pod: read by a new daemon, and by whoever wants to know without asking one.

<state_dir>/<directory of the id>/sandbox.json      the record, written before anything else is made
<state_dir>/.removing-<directory>/                  a pod of which only files are left
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from common.errors import InvalidArgument
from common.identifiers import check_identifier, directory_name, longest_parent_bytes
from common.records import UnreadableRecord, read_record
from sandboxers.states import SandboxState

RECORD_FILE = "sandbox.json"
REMOVED_PREFIX = ".removing-"
_LONGEST_SOCKET = "machine/vsock.backend"
"""The longest path of a socket in a pod's directory: of no type is it longer."""
STATE_DIR_MAX_BYTES = longest_parent_bytes(_LONGEST_SOCKET)
"""How long the path of a state directory may be."""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """One pod on disk. `state` is a `SandboxState` value; `exit_code` is -1 until the pod has ended. `descriptors` is
    the name of its group in the descriptor store."""

    VERSION: ClassVar[int] = 2

    pod: dict[str, Any]
    state: str
    created_at_ns: int
    address: str = ""
    pid: int = 0
    exit_code: int = -1
    exited_at_ns: int = 0
    descriptors: str = ""


def pod_directory_name(state_dir: str, sandbox_id: str) -> str:
    """Return the name of a pod's directory."""
    return directory_name(state_dir, sandbox_id, _LONGEST_SOCKET)


def read_sandbox(directory: str) -> tuple[SandboxRecord, bool] | None:
    """Return the record of the pod in a directory and whether it is of this boot; None if there is no record.

    :raise FailedPrecondition, UnreadableRecord: it is newer than this version, or damaged.
    """
    path = f"{directory}/{RECORD_FILE}"
    try:
        record, of_this_boot = read_record(path, SandboxRecord)
    except FileNotFoundError:
        return None
    try:
        SandboxState(record.state)
        check_identifier("sandbox", record.pod.get("sandbox_id", ""))
    except (ValueError, TypeError, InvalidArgument) as error:
        raise UnreadableRecord(f"record {path} is damaged: {error}") from error
    return record, of_this_boot
