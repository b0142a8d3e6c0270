"""Signals by their names."""

from __future__ import annotations

import signal

import pytest

from sandboxctl.signals import signal_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TERM", signal.SIGTERM),
        ("SIGTERM", signal.SIGTERM),
        ("sigint", signal.SIGINT),
        ("9", 9),
        ("SIGRTMIN", signal.SIGRTMIN),
        # What systemd as a container's first process ends for.
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("rtmax-1", signal.SIGRTMAX - 1),
    ],
)
def test_what_is_one(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "²", "9" * 5000, "SIG_DFL", "NOTHING", "RTMIN-1", "RTMAX+1"])
def test_what_is_none(name: str) -> None:
    assert signal_number(name) is None
