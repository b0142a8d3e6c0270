"""Signals end a process whatever it is doing, also while the interpreter waits for C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import Unimplemented
from common.linux import exit_on_signal
from common.linux.exit_on_signal import FATAL_SIGNALS, exit_on_signals

ROOT = Path(__file__).parents[4]

SLEEP_IN_C = """
import ctypes
from common.linux.exit_on_signal import exit_on_signals
exit_on_signals()
print("ready", flush=True)
while True:
    ctypes.PyDLL(None).sleep(1000)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGRTMIN + 3])
def test_a_process_that_sleeps_in_c_ends_with_the_signals_code(signum: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP_IN_C], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.02)
        process.send_signal(signum)
        assert process.wait(5) == 128 + signum


def test_what_needs_no_handler_and_what_is_an_engines_own_is_left_alone() -> None:
    assert not {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGILL, signal.SIGCHLD} & set(
        FATAL_SIGNALS
    )


def test_an_unknown_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_on_signal, "_CODE", {})
    with pytest.raises(Unimplemented, match=os.uname().machine):
        exit_on_signals()
