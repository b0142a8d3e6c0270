"""What is forked has its own session and no descriptor but those that it shall have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]

# Forked by a process in between, so that the children are ours; they tell by a pipe what they have.
FORK = """
import json, os
from common.process.forking import Forker

report, told = os.pipe()
other = os.open("/", os.O_RDONLY)
first = os.getpid()

def tell():
    opened = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
    os.write(told, json.dumps([opened, os.getsid(0) == os.getpid(), os.getppid() == first]).encode() + b"\\n")
    os._exit(3)

def fail():
    raise ValueError("nobody catches it")

between = os.fork()
if between == 0:
    forker = Forker()
    forker.fork(tell, [told])
    forker.fork(fail, [told])
    os._exit(0)
os.waitpid(between, 0)
codes = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
opened, leads, is_ours = json.loads(os.read(report, 4096))
print(opened == [0, 1, 2, told], leads, is_ours, codes)
"""


def test_a_child_has_what_it_shall_have_and_never_returns() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True True True [1, 3]", done.stderr
