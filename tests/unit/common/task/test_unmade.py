"""What is kept for processes that were not made stays kept, however many daemons die before they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import FailedPrecondition
from common.records import UnreadableRecord
from common.task.unmade import RECORD_FILE, Unmade
from tests.descriptor_store import KeptInMemory


@pytest.fixture
def store() -> Iterator[KeptInMemory]:
    store = KeptInMemory()
    yield store
    store.close()


def put(store: KeptInMemory, name: str) -> str:
    reader, writer = os.pipe()
    store.put(name, [writer])
    os.close(reader)
    os.close(writer)
    return name


def successor(directory: Path, store: KeptInMemory) -> Unmade:
    store.restart()
    unmade = Unmade(str(directory), store)
    unmade.recover()
    return unmade


def test_a_later_daemon_knows_what_an_earlier_one_has_kept(tmp_path: Path, store: KeptInMemory) -> None:
    unmade = Unmade(str(tmp_path), store)
    unmade.add("c", "", put(store, "o1"))
    unmade.add("c", "e", put(store, "o2"))
    unmade = successor(tmp_path, store)
    assert store.untaken() == [], "what is untaken is released when recovery is done"
    unmade.forget("c")
    assert list(store.kept) == ["o2"]
    unmade = successor(tmp_path, store)
    unmade.forget("c", "other")
    unmade.forget_all()
    assert store.kept == {}
    assert not (tmp_path / RECORD_FILE).exists()


def test_what_was_undone_several_times_is_let_go_together(tmp_path: Path, store: KeptInMemory) -> None:
    for number in range(3):
        successor(tmp_path, store).add("c", "", put(store, f"o{number}"))
    unmade = successor(tmp_path, store)
    assert list(store.kept) == ["o0", "o1", "o2"]
    unmade.forget("c")
    assert store.kept == {}


def test_without_a_record_there_is_nothing(tmp_path: Path, store: KeptInMemory) -> None:
    unmade = successor(tmp_path, store)
    unmade.forget("c")
    unmade.forget_all()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [("junk", UnreadableRecord), ('{"version": 9, "boot_id": "x", "record": {}}', FailedPrecondition)],
)
def test_a_record_that_cannot_be_understood_is_an_error(
    tmp_path: Path, store: KeptInMemory, text: str, error: type[Exception]
) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(error, match=RECORD_FILE):
        successor(tmp_path, store)


def test_a_full_disk_stops_nobody(tmp_path: Path, store: KeptInMemory) -> None:
    unmade = Unmade(str(tmp_path / "gone"), store)
    unmade.add("c", "", put(store, "o1"))
    unmade.forget("c")
    assert store.kept == {}
