"""A daemon ends the holders of those before it, never its own, and its own when it ends in good order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Unimplemented
from common.linux.pidfd import is_same_process, start_time
from common.process import fd_holders
from common.process.fd_holders import FdHolders, HoldersRecord
from common.records import read_record, write_record


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def record(tmp_path: Path) -> str:
    return str(tmp_path / "holders")


def recorded(path: str) -> list[list[int]]:
    return read_record(path, HoldersRecord)[0].processes


def test_predecessors_are_ended_and_our_own_is_not(record: str, sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        earlier = [sleeper.pid, start_time(sleeper.pid)]
        # The pid of one has become another's.
        write_record(record, HoldersRecord([earlier, [stranger.pid, 1]]))
        holders = FdHolders(record)
        holders.start()
        own = next(process for process in recorded(record) if process != earlier)
        holders.end_predecessors()
        assert sleeper.wait(5) == -9
        assert recorded(record) == [own]
        assert is_same_process(*own)
        holders.end()
        assert not is_same_process(*own)
        assert stranger.poll() is None
        stranger.kill()
    holders.end()


@pytest.mark.parametrize("text", ["{", '{"version":99,"boot_id":"x","record":{}}'])
def test_a_record_that_cannot_be_understood_stops_nobody(
    record: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(record).write_text(text)
    holders = FdHolders(record)
    holders.start()
    assert "descriptors.holders_not_known" in capfd.readouterr().err
    assert len(recorded(record)) == 1
    holders.end()


def test_where_there_can_be_none_a_daemon_goes_on_without(
    record: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: int) -> int:
        raise Unimplemented("not here")

    monkeypatch.setattr(fd_holders, "start_fd_holder", refuse)
    holders = FdHolders(record)
    holders.start()
    assert "descriptors.not_held" in capfd.readouterr().err
    holders.end_predecessors()
    holders.end()
    assert recorded(record) == []


def test_a_full_disk_stops_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    holders = FdHolders(str(tmp_path / "gone/holders"))
    holders.start()
    assert "descriptors.holders_not_recorded" in capfd.readouterr().err
    holders.end()
