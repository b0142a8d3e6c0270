"""Nothing that is given to the service manager gets lost on the way, and nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.descriptors import notify as notify_module
from common.descriptors.names import name_of, serial_of
from common.descriptors.notify import NotifyStore, barrier, notify, open_store
from common.descriptors.store import NoStore, all_sent
from tests.unit.common.process.supervised import ROOT, Supervised


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@pytest.fixture
def store(manager: socket.socket) -> Iterator[NotifyStore]:
    store = open_store()
    assert isinstance(store, NotifyStore)
    yield store
    store.close()


def receive(manager: socket.socket) -> tuple[str, int]:
    """Return a message and how many descriptors came with it."""
    data, fds, _, _ = socket.recv_fds(manager, 4096, 253)
    for fd in fds:
        os.close(fd)
    return data.decode(), len(fds)


def test_without_a_manager_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert isinstance(open_store(), NoStore)
    notify("READY=1")
    assert asyncio.run(barrier(1.0))


def test_a_group_goes_in_one_message_that_says_not_to_watch_it(
    manager: socket.socket, store: NotifyStore
) -> None:
    store.put("p1", [0, 1, 2])
    store.put("p2", [])
    store.remove("p1")
    notify("READY=1")
    assert [receive(manager) for _ in range(3)] == [
        ("FDSTORE=1\nFDPOLL=0\nFDNAME=p1", 3),
        ("FDSTOREREMOVE=1\nFDNAME=p1", 0),
        ("READY=1", 0),
    ]


async def test_a_manager_that_is_busy_gets_everything_later_and_in_order(
    manager: socket.socket, store: NotifyStore
) -> None:
    began_s = time.monotonic()
    for number in range(1500):
        reader, writer = os.pipe()
        store.put(f"c{number}", [reader])
        os.close(reader)
        os.close(writer)
    store.remove("c0")
    assert time.monotonic() - began_s < 2, "it did not wait"
    passed = asyncio.ensure_future(barrier(10.0))
    messages: list[tuple[str, int]] = []
    manager.setblocking(False)
    async with asyncio.timeout(20):
        while not messages or messages[-1] != ("BARRIER=1", 1):
            try:
                messages.append(receive(manager))
            except BlockingIOError:
                await asyncio.sleep(0)
    assert await passed
    assert messages == [
        *((f"FDSTORE=1\nFDPOLL=0\nFDNAME=c{number}", 1) for number in range(1500)),
        ("FDSTOREREMOVE=1\nFDNAME=c0", 0),
        ("BARRIER=1", 1),
    ]


async def test_who_waits_for_it_learns_when_a_busy_manager_has_what_was_put(
    manager: socket.socket, store: NotifyStore
) -> None:
    sent: list[str] = []
    store.when_sent(lambda: sent.append("nothing"))
    assert sent == ["nothing"]
    count = 1500
    for number in range(count):
        store.remove(f"c{number}")
    store.when_sent(lambda: sent.append("all"))
    store.put("last", [0])
    received: list[str] = []
    manager.setblocking(False)
    async with asyncio.timeout(20):
        while received[-1:] != ["FDSTORE=1\nFDPOLL=0\nFDNAME=last"]:
            # There is room in its queue for the rest soon, but not now.
            assert len(received) > 100 or sent == ["nothing"]
            try:
                received.append(receive(manager)[0])
            except BlockingIOError:
                await asyncio.sleep(0)
    assert len(received) == count + 1
    assert sent == ["nothing", "all"]
    await all_sent(store)


async def test_who_waits_for_a_manager_that_is_gone_goes_on(
    manager: socket.socket, store: NotifyStore
) -> None:
    for number in range(1500):
        store.remove(f"c{number}")
    waiting = asyncio.ensure_future(all_sent(store))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    manager.close()
    async with asyncio.timeout(20):
        await waiting


def test_a_manager_that_is_behind_for_a_moment_has_everything_before_the_daemon_goes_on(
    manager: socket.socket, store: NotifyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is busy with other tests may keep the thread below waiting for longer than a manager.
    monkeypatch.setattr(notify_module, "_PATIENCE_S", 10.0)
    received: list[str] = []

    def catch_up() -> None:
        while len(received) < 200:
            time.sleep(0.002)
            received.append(receive(manager)[0])

    catching_up = threading.Thread(target=catch_up)
    catching_up.start()
    for number in range(200):
        store.remove(f"c{number}")
    # Without an event loop nothing is sent later.
    catching_up.join(10)
    assert received == [f"FDSTOREREMOVE=1\nFDNAME=c{number}" for number in range(200)]


def test_without_an_event_loop_the_next_message_takes_along_what_waits(
    manager: socket.socket, store: NotifyStore
) -> None:
    count = 2000  # more than any queue takes
    for number in range(count):
        store.remove(f"c{number}")
    received: list[str] = []
    while len(received) < count + 1:
        manager.settimeout(0.01)
        try:
            received.append(receive(manager)[0])
        except TimeoutError:
            store.remove(f"x{len(received)}")
    names = [text.rpartition("=")[2] for text in received]
    assert [name for name in names if name.startswith("c")] == [f"c{n}" for n in range(count)]


async def test_a_barrier_that_nobody_handles_ends_in_time(manager: socket.socket, store: NotifyStore) -> None:
    assert not await barrier(0.05)
    receive(manager)


async def test_a_manager_that_is_gone_stops_nobody(
    manager: socket.socket, store: NotifyStore, tmp_path: Path
) -> None:
    manager.close()
    store.put("c1", [0])
    store.remove("c1")
    notify("READY=1")
    assert not await barrier(1.0)
    (tmp_path / "notify").unlink()
    another = open_store()
    another.put("c1", [0])
    assert isinstance(another, NotifyStore)
    another.close()


def test_names_are_a_letter_and_a_number_in_base_36() -> None:
    assert [name_of("c", number) for number in (0, 35, 36, 36**7 - 1)] == ["c0", "cz", "c10", "czzzzzzz"]
    for number in (0, 1, 35, 36, 1295, 1296, 10**9):
        assert serial_of(name_of("y", number)) == number
    with pytest.raises(ValueError):
        serial_of("c")


def test_variables_meant_for_another_process_hand_over_nothing() -> None:
    script = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    os.environ.update(LISTEN_PID="1", LISTEN_FDS="1", LISTEN_FDNAMES="c1", NOTIFY_SOCKET="@nobody")
    from common.descriptors.notify import open_store
    print(open_store().untaken(), [name for name in os.environ if name.startswith("LISTEN_")])
    """
    argv = [sys.executable, "-I", "-c", textwrap.dedent(script), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


# -- with the real supervisor --------------------------------------------------------------------------

DAEMON = """
import asyncio, fcntl
from common.descriptors.notify import barrier, notify, open_store

async def main():
    store = open_store()
    names = sorted(store.untaken())
    if names == ["exits"]:
        for number in range(COUNT):
            reader, writer = os.pipe()
            os.write(writer, b"%d" % number)
            store.put(store.new_name("c"), [reader, writer])
            os.close(reader); os.close(writer)
        notify("READY=1")
        await barrier(20)
        die()
    say(len(names), store.new_name("p"))
    fds = store.take("c5")
    say(len(fds), all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds))
    say(os.read(min(fds), 9).decode(), store.take("c5"), "c5" in store.untaken())
    say("LISTEN_FDS" in os.environ)

asyncio.run(main())
"""


def test_the_next_daemon_takes_back_what_the_one_before_has_put(tmp_path: Path) -> None:
    with Supervised(tmp_path, DAEMON.replace("COUNT", "1500")) as supervised:
        assert [supervised.line(30.0) for _ in range(4)] == ["1501 p15p", "2 True", "4 [] False", "False"]
