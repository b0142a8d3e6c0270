"""Bytes that pass through a file in memory on their way from a pipe to a socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from common.linux.spool import Spool


class Way:
    """A pipe, a spool and a connected pair of sockets."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.spool = Spool()

    def close(self) -> None:
        for end in (self.reader, self.writer):
            os.close(end)
        self.near.close()
        self.far.close()
        self.spool.close()
        self.spool.close()


@pytest.fixture
def way() -> Iterator[Way]:
    way = Way()
    yield way
    way.close()


def test_what_comes_goes_and_is_counted(way: Way) -> None:
    data = os.urandom(50_000)
    total = b""
    for _ in range(8):
        os.write(way.writer, data)
        assert way.spool.take_from(way.reader) == len(data)
        way.spool.send_to(way.near, 32768)
        assert way.far.recv(len(data), socket.MSG_WAITALL) == data
        total += data
        assert (way.spool.sent, way.spool.waiting) == (len(total), 0)
    # What has gone takes no memory, but for a page that has not gone as a whole.
    assert os.fstat(way.spool.fd).st_blocks * 512 <= 4096
    with pytest.raises(BlockingIOError):
        way.spool.take_from(way.reader)


def test_what_does_not_go_now_is_the_next_holders(way: Way) -> None:
    data = os.urandom(50_000)
    taken = 0
    with pytest.raises(BlockingIOError):
        while True:
            os.write(way.writer, data)
            taken += way.spool.take_from(way.reader)
            way.spool.send_to(way.near, 32768)
    later = Spool(os.dup(way.spool.fd))
    assert later.sent + later.waiting == taken
    received = b""
    while len(received) < taken:
        received += way.far.recv(1 << 20)
        if later.waiting:
            try:
                later.send_to(way.near, 32768)
            except BlockingIOError:
                continue
    later.close()
    assert received == data * (taken // len(data))
