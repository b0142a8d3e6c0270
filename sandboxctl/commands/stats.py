"""Show what the running containers use: live, or once.

CPU is in percent of one CPU since the line before, TIME the CPU time since the container's start. With --json, or where
the output is no terminal, each look is printed below the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import InvalidArgument, SandboxdError
from proto.gen.containerd.task.v3 import shim_pb2 as api
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.output import print_table, printable, short, size
from sandboxctl.pods import Container, Pod, find_pod_or_container, list_pods
from sandboxctl.stats import Usage, parse_usage
from sandboxctl.tasks import tasks_of

_ANSWER_TIMEOUT_S = 2.0
_CLEAR = "\x1b[H\x1b[J"


class Reading(NamedTuple):
    """What a container used at an instant (ns of the monotonic clock); None: it did not answer."""

    at_ns: int
    usage: Usage | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="POD|CONTAINER", nargs="*", help="only these (default: all)")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    parser.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    if not arguments.interval >= 0.1:
        raise InvalidArgument(f"--interval {arguments.interval:g}: at least 0.1 seconds")
    daemons = find_daemons(arguments)
    wanted = {find_pod_or_container(daemons, name).id for name in arguments.ids}
    asyncio.run(_watch(daemons, wanted, arguments))
    return 0


async def _watch(daemons: Sequence[Daemon], wanted: set[str], arguments: argparse.Namespace) -> None:
    before: dict[str, Reading] = {}
    clear = _CLEAR if os.isatty(1) and not arguments.once and not arguments.as_json else ""
    while True:
        pods = list_pods(daemons)
        readings = await _read(pods, wanted)
        containers = [c for pod in pods for c in pod.containers if c.id in readings]
        sys.stdout.write(clear)
        if arguments.as_json:
            print(json.dumps([_as_data(c, readings[c.id], before.get(c.id)) for c in containers]))
        else:
            rows = [_row(c, readings[c.id], before.get(c.id)) for c in containers]
            print_table(
                ("CONTAINER", "NAME", "CPU", "TIME", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN"), rows
            )
        sys.stdout.flush()
        if arguments.once:
            return
        before = readings
        await asyncio.sleep(arguments.interval)


async def _read(pods: Sequence[Pod], wanted: set[str]) -> dict[str, Reading]:
    """Ask all pods at once: one that hangs holds up no other."""
    asked = {
        pod: [
            c
            for c in pod.containers
            if c.state in ("running", "paused") and (not wanted or wanted & {c.id, pod.id})
        ]
        for pod in pods
    }
    found = await asyncio.gather(
        *(_read_pod(pod, containers) for pod, containers in asked.items() if containers)
    )
    return {container_id: reading for readings in found for container_id, reading in readings.items()}


async def _read_pod(pod: Pod, containers: Sequence[Container]) -> Mapping[str, Reading]:
    readings = {container.id: Reading(time.monotonic_ns(), None) for container in containers}
    try:
        async with tasks_of(pod) as tasks:
            for container in containers:
                request = api.StatsRequest(id=container.id)
                answer = await tasks.call("Stats", request, api.StatsResponse, timeout_s=_ANSWER_TIMEOUT_S)
                readings[container.id] = Reading(time.monotonic_ns(), parse_usage(answer.stats))
    except SandboxdError:
        pass  # shown as what did not answer
    return readings


def _cpu_percent(now: Reading, before: Reading | None) -> float | None:
    if now.usage is None or before is None or before.usage is None or now.at_ns <= before.at_ns:
        return None
    return 100 * (now.usage.cpu_ns - before.usage.cpu_ns) / (now.at_ns - before.at_ns)


def _row(container: Container, now: Reading, before: Reading | None) -> tuple[str, ...]:
    name = printable(container.name or "-")[:20]
    if now.usage is None:
        return short(container.id), name, *["-"] * 7
    usage, percent = now.usage, _cpu_percent(now, before)
    return (
        short(container.id),
        name,
        "-" if percent is None else f"{percent:.1f}%",
        f"{usage.cpu_ns / 1e9:.2f}s",
        size(usage.memory_bytes),
        size(usage.limit_bytes) if usage.limit_bytes else "-",
        str(usage.processes),
        size(usage.read_bytes),
        size(usage.written_bytes),
    )


def _as_data(container: Container, now: Reading, before: Reading | None) -> dict[str, Any]:
    data: dict[str, Any] = {"id": container.id, "pod": container.pod.id, "name": container.name}
    if now.usage is None:
        return data | {"answers": False}
    usage = now.usage
    return data | {
        "answers": True,
        "cpuPercent": _cpu_percent(now, before),
        "cpuNs": usage.cpu_ns,
        "memoryBytes": usage.memory_bytes,
        "memoryLimitBytes": usage.limit_bytes or None,
        "processes": usage.processes,
        "readBytes": usage.read_bytes,
        "writtenBytes": usage.written_bytes,
    }
