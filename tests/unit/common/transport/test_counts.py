"""How far a socket was read: counted by the kernel, for whoever reads it next."""

from __future__ import annotations

import os
import socket

import pytest

from common.transport import counts
from common.transport.counts import ReadCount


def test_a_later_reader_knows_what_an_earlier_one_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MODULUS", 1 << 16)
    near, far = socket.socketpair()
    reader, writer = os.pipe()
    count = ReadCount(near)
    assert count.value == 0
    total = 0
    for _ in range(50):
        far.send(b"x" * 9_000)
        moved = os.splice(near.fileno(), writer, 9_000)
        count.add(moved)
        os.read(reader, moved)
        total += moved
        later = ReadCount(near, recovered=True)
        assert count.value == later.value == total % (1 << 16)
    for end in (reader, writer):
        os.close(end)
    near.close()
    far.close()


def test_where_the_kernel_does_not_count_a_later_reader_knows_that_it_does_not_know() -> None:
    sock = socket.socket(socket.AF_INET)
    count = ReadCount(sock)
    count.add(5)
    assert count.value == 5
    assert ReadCount(sock, recovered=True).value is None
    sock.close()
