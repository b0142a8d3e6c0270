"""List the pods of this node, or their containers, from the records that the daemons keep.

Where a daemon does not run, what is on record is what it knew last. Exit code 1 if a record cannot be read.
"""

from __future__ import annotations

import argparse
import sys

from sandboxctl.daemons import find_daemons
from sandboxctl.output import age, print_json, print_table, printable
from sandboxctl.pods import list_pods


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids")


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons(arguments)
    pods = list_pods(daemons)
    if arguments.as_json:
        print_json(
            [
                {
                    "id": pod.id,
                    "type": pod.daemon.type.value,
                    "state": pod.state,
                    "name": pod.name,
                    "createdAtNs": pod.created_at_ns,
                    "problem": pod.problem,
                }
                for pod in pods
            ]
        )
    elif arguments.quiet:
        for pod in pods:
            print(pod.id)
    else:
        rows = [
            (pod.id[:13], pod.daemon.type.value, pod.state, age(pod.created_at_ns), printable(pod.name))
            for pod in pods
        ]
        print_table(("POD", "TYPE", "STATE", "AGE", "NAME"), rows)
    for pod in pods:
        if pod.problem:
            print(f"sandboxctl: {pod.problem}", file=sys.stderr)
    return int(any(pod.problem for pod in pods))
