"""Messages between daemon, fork server and module processes."""

from __future__ import annotations

import os
import socket

import pytest

from common.errors import FailedPrecondition, Internal, InvalidArgument
from sandboxers.wasm import launch


def test_a_message_arrives_with_its_descriptors() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        launch.send(ours, {"a": [1, "ä"]}, [ours.fileno()])
        received = launch.receive(theirs)
        assert received is not None
        message, fds, sender = received
        assert sender == 0
        assert message == {"a": [1, "ä"]}
        assert os.path.sameopenfile(fds[0], ours.fileno())
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])


def test_the_kernel_tells_who_has_sent_a_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        launch.tell_senders(ours)
        theirs.send(b"{}")
        assert launch.receive(ours) == ({}, [], os.getpid())


def test_an_end_is_no_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert launch.receive(theirs) is None


@pytest.mark.parametrize("error", [InvalidArgument("x"), FailedPrecondition("y")])
def test_an_error_keeps_its_kind_and_text(error: Exception) -> None:
    with pytest.raises(type(error), match=f"^container c: {error}$"):
        launch.raise_error(launch.error_message(error), "container c")


def test_foreign_and_unknown_errors_are_our_fault() -> None:
    with pytest.raises(Internal, match="ZeroDivisionError: z"):
        launch.raise_error(launch.error_message(ZeroDivisionError("z")))
    with pytest.raises(Internal, match=r"^m$"):
        launch.raise_error({"error": "SystemExit", "message": "m"})


def test_no_error_is_none() -> None:
    launch.raise_error({"ready": True})


@pytest.mark.parametrize("character", ["a", "\0", "ä", "\U0001f980"])
def test_an_error_of_any_length_fits_in_a_packet(character: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        launch.send(ours, launch.error_message(InvalidArgument(character * 1_000_000)))
        received = launch.receive(theirs)
        assert received is not None
        with pytest.raises(InvalidArgument, match=r"and \d+ more characters$") as raised:
            launch.raise_error(received.message)
        assert str(raised.value).startswith(character * 1000)


def test_a_message_that_is_too_large_is_not_taken_for_an_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(Internal, match="larger than a packet"):
            launch.send(ours, {"text": "x" * 1_000_000})
        ours.setblocking(False)
        # Who does not keep to it, and with descriptors that must not stay open.
        socket.send_fds(ours, [b"{" * (launch.PACKET_BYTES + 1)], [ours.fileno()])
        before = os.listdir("/proc/self/fd")
        with pytest.raises(Internal, match="was cut"):
            launch.receive(theirs)
        assert os.listdir("/proc/self/fd") == before
