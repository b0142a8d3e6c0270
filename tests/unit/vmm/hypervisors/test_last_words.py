"""What is quoted of logs, which may come from a guest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.log_files import LIMIT_BYTES
from common.process.exits import ExitStatus
from vmm.hypervisors.last_words import described, last_words, panic_on, thread_has_panicked

PANIC = b"thread 'vring_worker' (17616) panicked at src/vsock_conn.rs:238:64:\n"


def test_the_end_of_a_log_is_one_printable_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n\n  \x1b[2Jsecond\tline \xff\n\x07\n")
    assert last_words(str(log)) == "first; ?[2Jsecond line \ufffd; ?"


def test_of_a_long_log_the_end_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\nthe end\n")
    words = last_words(str(log))
    assert words.endswith("; the end")
    assert len(words) < 3000


def test_where_there_is_no_log_there_are_no_words(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "log")) == ""
    assert panic_on(str(tmp_path / "log")) == ""


def test_the_last_panic_is_found_before_its_registers(tmp_path: Path) -> None:
    console = tmp_path / "console"
    trace = "[    1.0] RIP: 0010:x+0x1/0x2\n" * 100
    console.write_text(
        f"[1.0] Kernel panic - not syncing: older\n[    2.0] Kernel panic - not syncing: {'y' * 500}\n{trace}"
    )
    assert panic_on(str(console)) == "y" * 160
    console.write_text("all is well\n")
    assert panic_on(str(console)) == ""


@pytest.mark.parametrize(
    ("words", "panicked"),
    [
        ("\nthread 'vring_worker' (17616) panicked at src/vsock_conn.rs:238:64:\ncalled `unwrap()`\n", True),
        ("thread 'main' panicked at 'no', src/main.rs:1:1\n", True),
        ("[ERROR virtiofsd] cannot open 'thread ' panicked at '\n", False),
        ("thread 'main' has ended\n", False),
        # A name that virtiofsd cannot open, with what other programs take for the end of a line.
        ("[ERROR virtiofsd] cannot open a\rthread 'x' panicked at b\n", False),
        ("[ERROR virtiofsd] cannot open a\x85thread 'x' panicked at b\n", False),
        ("[ERROR virtiofsd] cannot open a\u2028thread 'x' panicked at b\n", False),
    ],
)
def test_the_panic_of_a_thread_is_seen(tmp_path: Path, words: str, panicked: bool) -> None:
    log = tmp_path / "log"
    log.write_bytes(words.encode())
    assert thread_has_panicked(str(log)) == panicked


def test_the_panic_of_a_thread_does_not_scroll_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(PANIC + b"[WARN virtiofsd] no such file\n" * 5000)
    assert thread_has_panicked(str(log))


def test_a_line_whose_beginning_was_not_read_is_no_panic(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"[WARN virtiofsd] no file " + PANIC.ljust(LIMIT_BYTES, b"\n"))
    assert not thread_has_panicked(str(log))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "has ended"),
        (ExitStatus(255, 0, known=False), "has ended"),
        (ExitStatus(0, 0), "ended with code 0"),
        (ExitStatus(137, 0), "was killed by signal 9"),
    ],
)
def test_an_exit_in_words(status: ExitStatus | None, words: str) -> None:
    assert described(status) == words


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path), os.mkdir])
def test_what_is_no_file_has_no_words(tmp_path: Path, make: Callable[[str], None]) -> None:
    log = str(tmp_path / "log")
    make(log)
    assert last_words(log) == ""
