"""Terminals, peers, pidfds: each tells what the kernel knows."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.linux import pidfd, procs, terminal

ROOT = Path(__file__).parents[4]


def test_a_terminal_keeps_the_size_it_is_given() -> None:
    ours, theirs = os.openpty()
    try:
        terminal.set_window_size(ours, 132, 43)
        assert terminal.get_window_size(theirs) == (132, 43)
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_size_of_something_else_is_an_os_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(OSError, match="ioctl"):
            terminal.set_window_size(file.fileno(), 80, 24)
        with pytest.raises(OSError, match="ioctl"):
            terminal.get_window_size(file.fileno())


def test_a_socket_knows_its_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert procs.peer_credentials(ours) == (os.getpid(), os.getuid(), os.getgid())


def test_a_subreaper_becomes_the_parent_of_orphans() -> None:
    script = (
        "import os, subprocess, sys; sys.path.insert(0, sys.argv[1])\n"
        "from common.linux import procs\n"
        "procs.set_child_subreaper()\n"
        "subprocess.run(['sh', '-c', '(sleep 0.05; exit 7) &'])\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    result = subprocess.run([sys.executable, "-I", "-c", script, str(ROOT)], capture_output=True, text=True)
    assert result.stdout == "7\n", result.stderr


def test_the_start_time_is_read_behind_any_command_name(tmp_path: Path) -> None:
    program = tmp_path / "a) (b) 1 2"
    program.symlink_to("/bin/sleep")
    before = pidfd.start_time(os.getpid())
    process = subprocess.Popen([program, "10"])
    try:
        assert before <= pidfd.start_time(process.pid) <= before + 3600 * 24 * os.sysconf("SC_CLK_TCK")
        assert pidfd.start_time(process.pid) == pidfd.start_time(process.pid)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError) as caught:
        pidfd.start_time(process.pid)
    assert caught.value.filename == f"/proc/{process.pid}/stat"


def test_the_exit_of_a_process_is_known_after_someone_reaped_it() -> None:
    process = subprocess.Popen(["sleep", "10"])
    fd = os.pidfd_open(process.pid)
    try:
        if pidfd.parent_pid(fd) is None:
            pytest.skip("this kernel has no PIDFD_GET_INFO")
        assert pidfd.parent_pid(fd) == os.getpid()
        assert pidfd.exit_info(fd) is None
        process.kill()
        process.wait()
        assert pidfd.parent_pid(fd) is None
        status = pidfd.exit_info(fd)
        assert status is None or os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    finally:
        os.close(fd)


def test_two_pidfds_of_a_process_have_one_inode() -> None:
    first, second = os.pidfd_open(os.getpid()), os.pidfd_open(os.getpid())
    try:
        assert pidfd.pidfs_inode(first) == pidfd.pidfs_inode(second)
    finally:
        os.close(first)
        os.close(second)


# Has a key in its session keyring, leaves that, and tells the error of looking for the key.
KEYRING = """
import os
from common.linux import _libc
from common.linux.privileges import leave_session_keyring

ADD_KEY, SESSION, JOIN, SEARCH = {"x86_64": 248, "aarch64": 217}[os.uname().machine], -3, 1, 10
KEY = b"user", b"sandboxd-test"
_libc.keyctl(JOIN, 0)
_libc._checked(_libc._syscall(ADD_KEY, *KEY, b"secret", 6, SESSION))
for leave in (lambda: None, leave_session_keyring):
    leave()
    try:
        _libc._checked(_libc._syscall(_libc._SYS_KEYCTL[os.uname().machine], SEARCH, SESSION, *KEY, 0))
        print("found")
    except OSError as error:
        print(error.errno)
"""


def test_who_leaves_a_session_keyring_has_none_of_its_keys() -> None:
    command = [sys.executable, "-c", KEYRING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["found", str(errno.ENOKEY)], done.stderr
