"""The exit log is found in by pid and start time, by whoever has its descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from common.process import exit_log
from common.process.exit_log import DAEMON, SUPERVISOR, ExitLog, LoggedExit


@pytest.fixture
def log() -> Iterator[ExitLog]:
    log = ExitLog.create()
    yield log
    log.close()


def found(log: ExitLog, pid: int, start_time: int) -> tuple[int, int] | None:
    entry = log.find(pid, start_time)
    return (entry.raw_status, entry.exited_at_ns) if entry is not None else None


def test_an_end_is_found_by_pid_and_start_time_together(log: ExitLog) -> None:
    log.append(LoggedExit(10, 1000, 42 << 8, 5))
    log.append(LoggedExit(10, 2000, 9, 6))
    assert found(log, 10, 1000) == (42 << 8, 5)
    assert found(log, 10, 2000) == (9, 6)
    assert found(log, 10, 3000) is None
    assert found(log, 1000, 10) is None


def test_of_a_pid_alone_the_first_that_started_after_a_time_is_found(log: ExitLog) -> None:
    daemon = ExitLog(os.dup(log.fd), DAEMON)
    log.append(LoggedExit(10, 1000, 1 << 8, 9))
    log.append(LoggedExit(10, 3000, 3 << 8, 9))
    daemon.append(LoggedExit(10, 2000, 2 << 8, 9))
    daemon.append(LoggedExit(11, 1500, 4 << 8, 9))
    codes = {since: log.find_first(10, since) for since in (0, 1001, 2000, 2001, 3001)}
    daemon.close()
    assert {since: entry and entry.raw_status >> 8 for since, entry in codes.items()} == {
        0: 1, 1001: 2, 2000: 2, 2001: 3, 3001: None,
    }  # fmt: skip


def test_bytes_that_look_like_a_key_elsewhere_are_none(log: ExitLog) -> None:
    # The first entry's end and the second's beginning read as (5, 20).
    log.append(LoggedExit(10, 1000, 0, 5))
    log.append(LoggedExit(20, 2000, 7 << 8, 6))
    assert found(log, 5, 20) is None
    assert found(log, 20, 2000) == (7 << 8, 6)


def test_both_writers_are_read_and_neither_overwrites_the_other(log: ExitLog) -> None:
    daemon = ExitLog(os.dup(log.fd), DAEMON)
    for number in range(1, 50):
        log.append(LoggedExit(number, 1, number << 8, 1))
        daemon.append(LoggedExit(number, 2, number << 8, 2))
    for reader in (log, daemon):
        for number in range(1, 50):
            assert found(reader, number, 1) == (number << 8, 1)
            assert found(reader, number, 2) == (number << 8, 2)
    daemon.close()


def test_a_successor_goes_on_behind_the_last_entry(log: ExitLog) -> None:
    log.append(LoggedExit(1, 1, 0, 1))
    another = ExitLog(os.dup(log.fd), SUPERVISOR)
    another.append(LoggedExit(2, 2, 0, 2))
    assert found(log, 1, 1) is not None
    assert found(log, 2, 2) is not None
    another.close()


def test_it_does_not_grow_and_forgets_the_oldest_first(log: ExitLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_log, "_PLACES", 8)
    for number in range(1, 21):
        log.append(LoggedExit(number, number, 0, number))
    assert [number for number in range(1, 21) if log.find(number, number)] == list(range(13, 21))
    assert os.fstat(log.fd).st_size <= 4096 + 2 * 8 * 32


def test_an_empty_log_knows_nobody(log: ExitLog) -> None:
    assert log.find(0, 0) is None
    assert log.find(1, 1) is None
