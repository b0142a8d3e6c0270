"""Profiles of the specification become filters that the kernel keeps to."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import InvalidArgument
from common.linux.seccomp import compile_filter
from sandboxers.wasm.default_filter import DEFAULT_PROFILE

ROOT = Path(__file__).parents[4]

# Tries a few system calls below a filter and prints their errno, or 0.
TRY = """
import ctypes, json, os, socket, sys
from common.linux import _libc
from common.linux.seccomp import compile_filter, install_filter

instructions = compile_filter(json.loads(sys.argv[1]))
_libc.prctl(38, 1)
install_filter(instructions)
results = {}
for name, call in {
    "uname": os.uname,
    "socket": lambda: socket.socket(socket.AF_UNIX),
    "inet": lambda: socket.socket(socket.AF_INET),
    "fork": lambda: os.fork() or os._exit(0),
    "thread": lambda: _libc.run_in_own_thread(lambda: None),
}.items():
    try:
        call()
        results[name] = 0
    except OSError as error:
        results[name] = error.errno
print(json.dumps(results))
"""


def outcomes(profile: Any) -> dict[str, int]:
    command = [sys.executable, "-c", TRY, json.dumps(profile)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, int] = json.loads(done.stdout)
    return results


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def test_what_a_profile_forbids_fails_with_its_error_and_the_rest_works() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("uname", errnoRet=errno.EDOM), rule("socket")],
    }
    found = outcomes(profile)
    assert (found["uname"], found["socket"], found["thread"]) == (errno.EDOM, errno.EPERM, 0)


def test_conditions_on_arguments_hold_and_several_on_one_are_alternatives() -> None:
    def is_family(number: int) -> dict[str, Any]:
        return {"index": 0, "value": number, "op": "SCMP_CMP_EQ"}

    one = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("socket", args=[is_family(2)])]}
    assert (outcomes(one)["socket"], outcomes(one)["inet"]) == (0, errno.EPERM)
    both = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("socket", args=[is_family(1), is_family(2)])],
    }
    assert (outcomes(both)["socket"], outcomes(both)["inet"]) == (errno.EPERM, errno.EPERM)


def test_the_tight_default_allows_threads_and_the_network_but_no_processes() -> None:
    found = outcomes(DEFAULT_PROFILE)
    assert found["thread"] == found["uname"] == found["inet"] == 0
    assert found["fork"] == found["socket"] == errno.EPERM


def test_calls_that_nobody_knows_and_rules_that_say_nothing_new_are_left_out() -> None:
    plain = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("uname")]}
    more = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule("uname"), rule("frobnicate"), rule("read", action="SCMP_ACT_ALLOW")],
    }
    assert compile_filter(more) == compile_filter(plain)


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "allow"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", args=[{"index": 0, "op": "="}])]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ", "value": 1}])],
        },
    ],
)
def test_a_malformed_profile_is_refused(profile: Any) -> None:
    with pytest.raises(InvalidArgument, match="seccomp"):
        compile_filter(profile)
