"""The journal of requests in progress: what the next daemon finds, whatever happened to this one."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import journal as journal_module
from common.descriptors.store import NoStore
from common.errors import FailedPrecondition, ResourceExhausted
from common.journal import COMPACT_BYTES, ConnectionJournal
from common.ttrpc import Replay
from tests.descriptor_store import KeptInMemory


class Daemons:
    """One journal after the other over the same file and the same store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = KeptInMemory()
        self.journal = ConnectionJournal(str(path), self.store)
        self.peers: list[socket.socket] = []

    def connect(self) -> int:
        """Accept a connection; return its id."""
        mine, theirs = socket.socketpair()
        self.peers.append(mine)
        with theirs:
            return self.journal.opened(theirs)

    def restart(self) -> dict[int, Replay]:
        """Begin the life of the next daemon; return what it finds."""
        self._let_go()
        self.store.restart()
        self.journal = ConnectionJournal(str(self.path), self.store)
        return {kept.replay.connection_id: kept.replay for kept in self.journal.kept}

    def close(self) -> None:
        self._let_go()
        self.store.close()
        for peer in self.peers:
            peer.close()

    def _let_go(self) -> None:
        for kept in self.journal.kept:
            kept.sock.close()
            for frame in kept.replay.spilled:
                os.close(frame.fd)
        self.journal.close()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path / "journal")
    yield daemons
    daemons.close()


def test_what_was_not_answered_is_found_with_its_outcome(daemons: Daemons) -> None:
    journal, one, two = daemons.journal, daemons.connect(), daemons.connect()
    journal.admitted(one, 1, b"answered")
    journal.outcome(one, 1, b"outcome of 1")
    journal.answered(one, 1)
    journal.admitted(one, 5, b"done")
    journal.admitted(one, 3, b"begun")
    journal.outcome(one, 5, b"outcome of 5")
    journal.partial(two, b"a")
    journal.partial(two, b"b")
    for _ in range(2):
        found = daemons.restart()
        assert found[one].requests == [(3, b"begun", None), (5, b"done", b"outcome of 5")]
        assert (found[one].pieces, found[two].pieces, found[two].requests) == ([], [b"a", b"b"], [])
    daemons.journal.partial(two, b"")
    daemons.journal.answered(one, 3)
    daemons.journal.closed(two)
    found = daemons.restart()
    assert list(found) == [one]
    assert [request.stream_id for request in found[one].requests] == [5]
    assert (daemons.path.stat().st_mode & 0o777) == 0o600


def test_a_connection_is_known_again_by_the_name_it_is_kept_under(daemons: Daemons) -> None:
    ids = [daemons.connect() for _ in range(40)]
    assert sorted(daemons.restart()) == sorted(ids)
    assert daemons.connect() not in ids


def test_a_connection_that_is_not_kept_any_more_is_forgotten(daemons: Daemons) -> None:
    lost, kept = daemons.connect(), daemons.connect()
    for connection_id in (lost, kept):
        daemons.journal.admitted(connection_id, 1, b"frame")
    daemons.store.remove(min(daemons.store.kept))
    assert list(daemons.restart()) == [kept]
    assert list(daemons.restart()) == [kept]


def test_a_connection_without_requests_is_kept_too(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    daemons.path.unlink()
    assert daemons.restart() == {connection_id: Replay(connection_id, [], [], [])}


def test_what_nobody_adopts_is_closed_or_left_to_a_later_daemon(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    daemons.journal.admitted(connection_id, 1, b"frame")
    daemons.restart()
    daemons.journal.abandon_rest(keep=True)
    assert daemons.restart()[connection_id].requests
    daemons.journal.abandon_rest(keep=False)
    assert daemons.peers[0].recv(1) == b""
    assert daemons.restart() == {}
    assert daemons.store.kept == {}


def test_a_large_answer_is_kept_until_it_is_sent(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    sent, half_sent = (daemons.journal.spill(connection_id, bytes(100_000)) for _ in range(2))
    assert sent is not None
    assert half_sent is not None
    os.close(sent.fd)
    daemons.journal.unspilled(connection_id, sent.serial)
    os.lseek(half_sent.fd, 60_000, os.SEEK_SET)
    os.close(half_sent.fd)
    (frame,) = daemons.restart()[connection_id].spilled
    assert frame.serial == half_sent.serial
    assert os.lseek(frame.fd, 0, os.SEEK_CUR) == 60_000
    assert os.pread(frame.fd, 1 << 20, 0) == bytes(100_000)
    daemons.journal.abandon_rest(keep=False)
    assert daemons.store.kept == {}


def test_a_large_answer_put_away_but_not_on_record_is_thrown_away(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    size = daemons.path.stat().st_size
    frame = daemons.journal.spill(connection_id, bytes(100_000))
    assert frame is not None
    os.close(frame.fd)
    os.truncate(daemons.path, size)
    assert daemons.restart()[connection_id].spilled == []
    assert len(daemons.store.kept) == 1


def test_a_connection_whose_large_answer_is_lost_is_given_up(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    frame = daemons.journal.spill(connection_id, bytes(100_000))
    assert frame is not None
    os.close(frame.fd)
    (name,) = (name for name in daemons.store.kept if name.startswith("w"))
    daemons.store.remove(name)
    daemons.restart()
    assert [kept.path for kept in daemons.journal.kept] == [""]


def test_a_torn_tail_is_cut_wherever_it_is_torn(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    daemons.journal.admitted(connection_id, 1, b"first")
    intact = daemons.path.stat().st_size
    daemons.journal.admitted(connection_id, 3, b"second")
    whole = daemons.path.read_bytes()
    for size in range(intact, len(whole)):
        daemons.path.write_bytes(whole[:size])
        found = daemons.restart()
        assert found[connection_id].requests == [(1, b"first", None)], size
        daemons.journal.admitted(connection_id, 5, b"later")
        found = daemons.restart()
        assert [request.stream_id for request in found[connection_id].requests] == [1, 5], size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_are_no_journal_lose_no_connection(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "journal").unlink(missing_ok=True)
    daemons = Daemons(tmp_path / "journal")
    try:
        connection_id = daemons.connect()
        daemons.journal.admitted(connection_id, 1, b"frame")
        content = bytearray(daemons.path.read_bytes())
        position = data.draw(st.integers(len(b"sandboxd journal 1\n"), len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
        daemons.path.write_bytes(content + data.draw(st.binary(max_size=64)))
        assert daemons.restart()[connection_id].requests == []
        daemons.path.write_bytes(data.draw(st.binary(max_size=16)))
        assert connection_id in daemons.restart()
    finally:
        daemons.close()


def test_a_journal_of_a_later_format_is_refused_and_stays_as_it_is(daemons: Daemons) -> None:
    daemons.connect()
    content = b"sandboxd journal 2\nwho knows"
    daemons.path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match="format 2"):
        daemons.restart()
    assert daemons.path.read_bytes() == content
    assert len(daemons.store.kept) == 1


def test_entries_of_an_unknown_kind_are_passed_over(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    with daemons.path.open("ab") as file:
        file.write(journal_module._encode(99, connection_id, 1, b"from a later version"))
    daemons.journal.admitted(connection_id, 3, b"frame")
    assert [request.stream_id for request in daemons.restart()[connection_id].requests] == [3]


def test_the_file_stays_small_while_a_request_is_parked(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    daemons.journal.admitted(connection_id, 1, b"parked")
    inodes = {daemons.path.stat().st_ino}
    for stream_id in range(3, 20_003, 2):
        daemons.journal.admitted(connection_id, stream_id, bytes(100))
        daemons.journal.outcome(connection_id, stream_id, bytes(100))
        daemons.journal.answered(connection_id, stream_id)
        inodes.add(daemons.path.stat().st_ino)
        assert daemons.path.stat().st_size <= COMPACT_BYTES
    assert len(inodes) > 1
    assert daemons.restart()[connection_id].requests == [(1, b"parked", None)]


def test_much_that_is_pending_is_not_rewritten_with_each_entry(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    inodes = []
    for stream_id in range(1, 801, 2):
        daemons.journal.admitted(connection_id, stream_id, bytes(20_000))
        inodes.append(daemons.path.stat().st_ino)
    assert sum(before != after for before, after in itertools.pairwise(inodes)) in range(1, 5)
    assert len(daemons.restart()[connection_id].requests) == 400


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int | None], None]]:
    """A way to make writes fall short, as on a full file system: no file may grow beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size_bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size_bytes is None else size_bytes, hard))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, before)


def test_without_room_nothing_is_admitted_and_nothing_else_is_lost(
    daemons: Daemons, limit_file_size: Callable[[int | None], None]
) -> None:
    connection_id = daemons.connect()
    journal = daemons.journal
    journal.admitted(connection_id, 1, b"first")
    journal.admitted(connection_id, 3, b"second")
    size = daemons.path.stat().st_size
    for room in (0, 1, 30):
        limit_file_size(size + room)
        with pytest.raises(ResourceExhausted, match=str(daemons.path)):
            journal.admitted(connection_id, 5, bytes(1000))
        assert daemons.path.stat().st_size == size
    limit_file_size(size)
    journal.outcome(connection_id, 3, b"outcome")
    journal.answered(connection_id, 1)
    with pytest.raises(ResourceExhausted):
        journal.admitted(connection_id, 7, b"third")
    limit_file_size(None)
    journal.admitted(connection_id, 9, b"fourth")
    found = daemons.restart()[connection_id].requests
    assert found == [(3, b"second", b"outcome"), (9, b"fourth", None)]


def test_compacting_without_room_fails_no_call(daemons: Daemons) -> None:
    connection_id = daemons.connect()
    (daemons.path.parent / "journal.new").mkdir()
    for stream_id in range(1, 201, 2):
        daemons.journal.admitted(connection_id, stream_id, bytes(20_000))
    assert len(daemons.restart()[connection_id].requests) == 100
    daemons.journal.admitted(connection_id, 201, b"goes on in the old file")
    (daemons.path.parent / "journal.new").rmdir()
    assert len(daemons.restart()[connection_id].requests) == 101


def test_where_nobody_keeps_connections_there_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"of an earlier daemon")
    journal = ConnectionJournal(str(path), NoStore())
    mine, theirs = socket.socketpair()
    with mine, theirs:
        connection_id = journal.opened(theirs)
        journal.admitted(connection_id, 1, b"frame")
        journal.outcome(connection_id, 1, b"frame")
        journal.answered(connection_id, 1)
        journal.partial(connection_id, b"piece")
        assert journal.spill(connection_id, bytes(100_000)) is None
        journal.closed(connection_id)
    assert os.listdir(tmp_path) == []
