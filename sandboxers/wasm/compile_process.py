"""What a forked process does that compiles: one thing, a module to native code or a seccomp profile to a filter.

It works on what an image or its author has made, so it has given up all its privileges by then. A process of its own
also because one that has compiled cannot fork others that run: they would wait for its threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import resource
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from common.linux.container_root import enter_empty_root
from common.linux.oom_score import FIRST, set_oom_score_adj
from common.linux.prctl import set_parent_death_signal
from common.linux.privileges import drop_privileges, forbid_inspection
from common.linux.seccomp import compile_filter, require_library
from sandboxers.wasm import launch
from sandboxers.wasm.engines import Engine
from sandboxers.wasm.modules import Kind

_UNPRIVILEGED_ID = 65534
_OUTPUTS = (1, 2)
_NICENESS = 5
_SCRATCH_BYTES = 1 << 30


def confine() -> None:
    """Give up all that compiling does not need, but for limits that depend on what is compiled."""
    # It inherits the daemon's, whom the kernel may be told to spare.
    set_oom_score_adj(FIRST)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in _OUTPUTS:
        os.dup2(nothing, stream)
    os.close(nothing)
    # Who lacks it is told so when it is needed; but no library can be loaded after this.
    with contextlib.suppress(Unimplemented):
        require_library()
    # What a compiler that is killed has written goes with it.
    enter_empty_root(_SCRATCH_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Of several modules that are compiled at once none is worth more than what runs already.
    os.nice(_NICENESS)
    drop_privileges(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
    forbid_inspection()
    # Nobody waits for what a daemon that has died wanted. Last, since a change of the user ends it.
    set_parent_death_signal(signal.SIGKILL)


def compile_and_tell(engine: Engine, message: Mapping[str, Any], fds: list[int]) -> NoReturn:
    """Do what a message asks for, and say on its channel what came of it; ends this process, which is confined."""
    channel_fd, source_fd, output_fd = fds
    channel = socket.socket(fileno=channel_fd)
    order = launch.Order(**message["compile"])
    try:
        _limit(order)
        # It tells the daemon who we are, before we touch what others have made.
        launch.send(channel, {"begun": True})
        try:
            answer = _compile(engine, order, source_fd, output_fd)
        except Exception as error:
            answer = launch.error_message(_beyond_a_limit(order, error) or error)
        launch.send(channel, answer)
    finally:
        os._exit(0)


def _limit(order: launch.Order) -> None:
    memory_bytes = order.memory_mib << 20
    cpu_s = math.ceil(order.timeout_s) * len(os.sched_getaffinity(0))
    for number, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, order.output_mib << 20),
        (resource.RLIMIT_CPU, cpu_s),
    ):
        resource.setrlimit(number, (limit, limit))


def _beyond_a_limit(order: launch.Order, error: Exception) -> ResourceExhausted | None:
    if isinstance(error, MemoryError):
        return ResourceExhausted(f"compiling it takes more than {order.memory_mib} MiB of address space")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ResourceExhausted(
            f"compiled it takes more than {order.output_mib} MiB, half of modules.cache_size_mib"
        )
    return None


def _compile(engine: Engine, order: launch.Order, source_fd: int, output_fd: int) -> launch.Message:
    with open(source_fd, "rb") as file:
        file.seek(0)
        source = file.read()
    # Who asks hands over a sealed copy; but what is made will be everybody's who has what the digest is of.
    if hashlib.sha256(source).hexdigest() != order.digest:
        raise FailedPrecondition("it was changed while it was being compiled")
    result, is_draft = None, False
    match order.what:
        case launch.What.FILTER:
            result = compile_filter(_parse_profile(source))
        case launch.What.MODULE:
            result = engine.draft(source, Kind(order.kind))
            is_draft = result is not None
    if result is None:
        result = engine.compile(source, Kind(order.kind))
    with open(output_fd, "wb") as file:
        file.write(result)
    return {"checksum": hashlib.sha256(result).hexdigest(), "draft": is_draft}


def _parse_profile(text: bytes) -> dict[str, object]:
    profile = json.loads(text)
    if not isinstance(profile, dict):
        raise InvalidArgument("seccomp: the profile must be an object")
    return profile
