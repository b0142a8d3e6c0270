"""Records: atomic, versioned, and never trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import FailedPrecondition
from common.records import UnreadableRecord, boot_id, read_record, write_record

CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Note:
    VERSION: ClassVar[int] = 3

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    pid: int = 0
    done: bool = False


def envelope(**changes: Any) -> dict[str, Any]:
    return {"version": 3, "boot_id": boot_id(), "record": {"name": "x"}, **changes}


def put(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    note = Note("a ☃", {"k": "v"}, [1, 2], 7, True)
    path = str(tmp_path / "note.json")
    write_record(path, note)
    assert read_record(path, Note) == (note, True)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["note.json"]


def test_a_record_replaces_the_one_before(tmp_path: Path) -> None:
    path = str(tmp_path / "note.json")
    write_record(path, Note("a" * 1000))
    write_record(path, Note("b"))
    assert read_record(path, Note)[0].name == "b"


def test_a_reader_that_has_the_old_one_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_record(str(path), Note("old"))
    with path.open() as file:
        write_record(str(path), Note("new"))
        assert json.load(file)["record"]["name"] == "old"


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "note.json.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        write_record(str(tmp_path / "note.json"), Note("x"))
    assert victim.read_text() == "precious"


# In a process of its own: no file may grow beyond 64 bytes there, so writes come up short, as on a full disk.
WITHOUT_SPACE = """
import resource, signal, sys
from tests.unit.common.test_records import Note
from common.records import write_record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    write_record(sys.argv[1], Note("x" * 100))
except OSError as error:
    sys.exit(error.errno)
"""


def test_without_space_the_old_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    ended = subprocess.run([sys.executable, "-c", WITHOUT_SPACE, str(path)], cwd=CHECKOUT)
    assert ended.returncode == errno.ENOSPC
    assert path.read_text() == "old"


def test_a_record_of_another_boot_is_told_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "r", envelope(boot_id="11111111-2222-3333-4444-555555555555"))
    assert read_record(path, Note) == (Note("x"), False)


def test_an_older_record_is_completed_with_defaults(tmp_path: Path) -> None:
    path = put(tmp_path / "r", envelope(version=1, record={"name": "x", "long_gone": 1}))
    assert read_record(path, Note)[0] == Note("x")


def test_a_record_from_the_future_is_refused_and_untouched(tmp_path: Path) -> None:
    path = put(tmp_path / "r", envelope(version=4, record={"anything": None}))
    before = (tmp_path / "r").read_bytes()
    with pytest.raises(FailedPrecondition, match="version 4, this sandboxd knows 3"):
        read_record(path, Note)
    assert (tmp_path / "r").read_bytes() == before


def test_a_missing_record_is_just_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(str(tmp_path / "none"), Note)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        7,
        envelope(version=None),
        envelope(version="many"),
        envelope(version=float("inf")),
        envelope(record=None),
        envelope(record=[]),
        envelope(record={}),
        envelope(record={"name": 5}),
        envelope(record={"name": None}),
        envelope(record={"name": "x", "pid": "7"}),
        envelope(record={"name": "x", "labels": []}),
        envelope(record={"name": "x", "ids": {}}),
        envelope(record={"name": "x", "done": "yes"}),
        envelope(record={"name": "x", "ids": [1, "2"]}),
        envelope(record={"name": "x", "labels": {"a": 1}}),
        envelope(record={"name": "x", "pid": True}),
        envelope(record={"name": "x", "pid": 1 << 64}),
    ],
)
def test_a_damaged_record_is_unreadable_with_the_reason(tmp_path: Path, content: object) -> None:
    with pytest.raises(UnreadableRecord, match=r"record .* is damaged: ."):
        read_record(put(tmp_path / "r", content), Note)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.just(b"[" * 100_000))
def test_random_bytes_are_unreadable_and_nothing_worse(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(UnreadableRecord):
        read_record(str(tmp_path / "r"), Note)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_record_cut_short_is_unreadable(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "r"
    write_record(str(path), Note("name", {"k": "v"}, [1]))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UnreadableRecord):
        read_record(str(path), Note)
