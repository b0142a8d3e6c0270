"""List the pods of this node, or their containers, from the records that the daemons keep.

Where a daemon does not run, what is on record is what it knew last. Exit code 1 if a record cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from sandboxctl.daemons import find_daemons_if_any
from sandboxctl.output import age, print_json, print_table, printable, short
from sandboxctl.pods import Container, Pod, list_pods, list_unremoved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--containers", action="store_true", help="list containers instead of pods")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids")


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons_if_any(arguments)
    pods = list_pods(daemons) + list_unremoved(daemons)
    containers = [container for pod in pods for container in pod.containers]
    listed: Sequence[Pod | Container] = containers if arguments.containers else pods
    if arguments.as_json:
        print_json(
            [container_data(c) for c in containers] if arguments.containers else [pod_data(p) for p in pods]
        )
    elif arguments.quiet:
        for thing in listed:
            print(thing.id)
    elif arguments.containers:
        print_table(
            ("CONTAINER", "POD", "TYPE", "STATE", "PID", "NAME", "IMAGE"), map(_container_row, containers)
        )
    else:
        print_table(("POD", "TYPE", "STATE", "AGE", "NAME"), map(_pod_row, pods))
    for pod in pods:
        if pod.problem:
            print(f"sandboxctl: {pod.problem}", file=sys.stderr)
    for daemon in {pod.daemon.config_file: pod.daemon for pod in pods}.values():
        if not daemon.is_running():
            print(
                f"sandboxctl: the daemon of {daemon.config_file} does not run: its pods as last seen",
                file=sys.stderr,
            )
    return int(any(pod.problem for pod in pods))


def _pod_row(pod: Pod) -> tuple[str, ...]:
    return short(pod.id), pod.daemon.type.value, pod.state, age(pod.created_at_ns), printable(pod.name)


def _container_row(container: Container) -> tuple[str, ...]:
    record, pod = container.record, container.pod
    state = container.state if container.exit_code is None else f"exited ({container.exit_code})"
    pid = str(record.pid) if record.pid and container.exit_code is None else "-"
    texts = (printable(container.name or "-"), printable(container.image or "-"))
    return short(container.id), short(pod.id), pod.daemon.type.value, state, pid, *texts


def pod_data(pod: Pod) -> dict[str, Any]:
    """Return what is on record about a pod, as programs read it."""
    return {
        "id": pod.id,
        "type": pod.daemon.type.value,
        "state": pod.state,
        "name": pod.name,
        "createdAtNs": pod.created_at_ns,
        "containers": [container.id for container in pod.containers],
        "problem": pod.problem,
    }


def container_data(container: Container) -> dict[str, Any]:
    """Return what is on record about a container, as programs read it."""
    record = container.record
    return {
        "id": container.id,
        "pod": container.pod.id,
        "type": container.pod.daemon.type.value,
        "state": container.state,
        "name": container.name,
        "image": container.image,
        "pid": record.pid,
        "exitCode": container.exit_code,
        "exitedAtNs": record.exited_at_ns,
        "oomKills": record.oom_kills,
        "terminal": record.terminal,
        "bundle": record.bundle,
    }
