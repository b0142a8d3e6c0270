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
