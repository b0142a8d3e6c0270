"""A sibling is forked: its parent is ours, and the interpreter goes on in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]

# The process in between asks for a sibling, which so becomes a child of the first one.
FORK = """
import os, threading
from common.linux.clone import fork_sibling

first = os.getpid()
between = os.fork()
if between == 0:
    pid = fork_sibling()
    if pid == 0:
        # Locks and threads are those of a process of its own.
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        os._exit(7 if os.getppid() == first and threading.main_thread().is_alive() else 1)
    os._exit(0)
assert os.waitpid(between, 0)[1] == 0
pid, status = os.wait()
print(pid != between, os.waitstatus_to_exitcode(status))
"""


def test_the_child_is_a_child_of_our_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("True 7", 0), done.stderr


def test_what_the_kernel_refuses_is_an_error_and_the_process_goes_on() -> None:
    # Without privileges there is no new PID namespace.
    code = """
import os
from common.linux.clone import fork_sibling
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    fork_sibling(new_pid_namespace=True)
except PermissionError:
    print("refused", os.waitstatus_to_exitcode(os.waitpid(os.spawnlp(os.P_NOWAIT, "true", "true"), 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "refused 0", done.stderr
