"""The lock of a state directory: one process owns it, and a dead one's file is in nobody's way."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import FailedPrecondition
from sandboxers.lock import LOCK_FILE, owning

OWNER = """
import sys
import threading
from sandboxers.lock import owning
with owning(sys.argv[1]):
    print("owned", flush=True)
    sys.stdin.read()
"""

# Ends, but another process has the same open file.
INHERITED = """
import os, subprocess, sys
from sandboxers.lock import owning
with owning(sys.argv[1]):
    lock = next(fd for fd in range(3, 99) if os.path.realpath(f"/proc/self/fd/{fd}").endswith("/.lock"))
    print(subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL).pid, flush=True)
    os._exit(0)
"""


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"owned\n"
        with (
            pytest.raises(FailedPrecondition, match=f"served by another sandboxd, pid {owner.pid}:"),
            owning(str(tmp_path)),
        ):
            pass
        owner.kill()
        owner.wait()
        with owning(str(tmp_path)):
            assert (tmp_path / LOCK_FILE).read_text().split() == [str(os.getpid())]


@pytest.mark.parametrize("text", ["", "4194305\n", "no pid at all, and longer than any"])
def test_the_file_of_a_dead_owner_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with owning(str(tmp_path)):
        assert (tmp_path / LOCK_FILE).read_text().split() == [str(os.getpid())]
    assert (tmp_path / LOCK_FILE).stat().st_mode & 0o022 == 0


def test_a_new_lock_is_for_root_alone(tmp_path: Path) -> None:
    with owning(str(tmp_path)):
        assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o600


def test_whoever_only_looks_is_in_nobodys_way(tmp_path: Path) -> None:
    fd = os.open(tmp_path / LOCK_FILE, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    looked = threading.Timer(0.03, os.close, [fd])
    looked.start()
    with owning(str(tmp_path)):
        pass
    looked.join()


def test_a_lock_that_a_dead_owners_descriptors_still_hold_is_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", INHERITED, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        heir = int(owner.stdout.readline())
        assert owner.wait(5) == 0
        threading.Timer(0.1, os.kill, (heir, signal.SIGKILL)).start()
        with owning(str(tmp_path)):
            assert not os.path.exists(f"/proc/{owner.pid}")
