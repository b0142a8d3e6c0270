"""The log of starts: what is written, how large it becomes, and what is read back."""

from __future__ import annotations

from pathlib import Path

from common import log
from common.operations import Action, ignore_operations, note_step, observe_operations, operation
from sandboxers.start_log import FILE, StartLog, read_starts


def start(start_log: StartLog, sandbox_id: str, action: Action = Action.SANDBOX_START) -> None:
    observe_operations(start_log.note)
    try:
        with operation(action, sandbox_id, pod="ns/name"):
            note_step("sandbox.starting")
    finally:
        ignore_operations(start_log.note)
        start_log.close()


def ids(state_dir: Path) -> list[str]:
    return [each["sandbox_id"] for each in read_starts(str(state_dir))]


def test_a_start_is_read_as_it_was_and_a_stop_is_none(tmp_path: Path) -> None:
    start_log = StartLog(str(tmp_path))
    assert ids(tmp_path) == []
    start(start_log, "a")
    start(start_log, "a", Action.SANDBOX_STOP)
    (read,) = read_starts(str(tmp_path))
    assert (read["action"], read["pod"], read["steps"][0][0]) == (
        "sandbox.start",
        "ns/name",
        "sandbox.starting",
    )
    assert read["steps"][0][1] <= read["age_us"]


def test_the_files_stay_small_and_the_last_starts_are_in_them(tmp_path: Path) -> None:
    start_log = StartLog(str(tmp_path), size_bytes=2000)
    names = [f"pod{number}" for number in range(60)]
    for name in names:
        start(start_log, name)
    kept = ids(tmp_path)
    assert len(kept) > 8
    assert kept == names[-len(kept) :]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 2300


def test_a_new_daemon_goes_on_with_the_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        start(StartLog(str(tmp_path)), name)
    assert ids(tmp_path) == ["a", "b"]


def test_torn_and_odd_lines_are_left_out(tmp_path: Path) -> None:
    start_log = StartLog(str(tmp_path))
    start(start_log, "a")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"sandbox_id":"torn\n[1]\n\xff\n{"sandbox_id": "p"}\n')
    start(start_log, "b")
    assert ids(tmp_path) == ["a", "b"]


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    start_log = StartLog(str(tmp_path / "missing"))
    with log.capture() as lines:
        start(start_log, "a")
        start(start_log, "b")
        (tmp_path / "missing").mkdir()
        start(start_log, "c")
    assert [line["event"] for line in lines] == ["start_log.not_written"]
    assert ids(tmp_path / "missing") == ["c"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / FILE).symlink_to(target)
    with log.capture() as lines:
        start(StartLog(str(tmp_path)), "a")
    assert not target.exists()
    assert lines[0]["event"] == "start_log.not_written"
