"""The program that compiles one thing and ends: a module to native code, or a seccomp profile to a filter.

    <engine|-> <kind|-> <memory limit in MiB> <descriptor>

What is compiled comes by standard input, what comes out goes to the descriptor, and a line of JSON to standard output.
It works on what an image or its author has made, so it has given up all its privileges by then. A process of its own
also because one that has compiled cannot fork others that run: they would wait for its threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys

from common.errors import InvalidArgument, ResourceExhausted
from common.linux.prctl import set_parent_death_signal
from common.linux.privileges import drop_privileges, forbid_inspection
from common.linux.seccomp import compile_filter
from sandboxers.wasm import launch
from sandboxers.wasm.engines import EngineName, load_engine
from sandboxers.wasm.modules import Kind

_UNPRIVILEGED_ID = 65534


def main() -> None:
    """Compile; exit code 0 also where the answer is an error."""
    engine, kind, memory_mib, output = sys.argv[1:]
    try:
        answer: launch.Message = {"checksum": _compile(engine, kind, int(memory_mib), int(output))}
    except MemoryError:
        answer = launch.error_message(
            ResourceExhausted(f"compiling it takes more than {memory_mib} MiB of address space")
        )
    except Exception as error:
        answer = launch.error_message(error)
    print(json.dumps(answer), flush=True)


def _compile(engine: str, kind: str, memory_mib: int, output: int) -> str:
    loaded = load_engine(EngineName(engine)) if engine != "-" else None
    if loaded is not None:
        # Our installation may be root's alone.
        loaded.load_compiler()
    _confine(memory_mib)
    with open(0, "rb") as file:
        file.seek(0)
        source = file.read()
    result = loaded.compile(source, Kind(kind)) if loaded else compile_filter(_parse_profile(source))
    with open(output, "wb") as file:
        file.write(result)
    return hashlib.sha256(result).hexdigest()


def _confine(memory_mib: int) -> None:
    limit = memory_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Of several modules that are compiled at once none is worth more than what runs already.
    os.nice(5)
    drop_privileges(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
    forbid_inspection()
    # Nobody waits for what a daemon that has died wanted. Last, since a change of the user ends it.
    set_parent_death_signal(signal.SIGKILL)


def _parse_profile(text: bytes) -> dict[str, object]:
    profile = json.loads(text)
    if not isinstance(profile, dict):
        raise InvalidArgument("seccomp: the profile must be an object")
    return profile
