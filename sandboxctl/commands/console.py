"""Show what the guest of a VM pod has written to its console, also after its end and while no daemon runs."""

from __future__ import annotations

import argparse

from common.errors import NotFound
from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_json, printable
from sandboxctl.pods import find_pod
from sandboxers.sandbox import CONSOLE_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD")


def run(arguments: argparse.Namespace) -> int:
    pod = find_pod(find_daemons(arguments), arguments.pod)
    # From the file, not from the daemon: it is wanted most where that is in trouble.
    path = f"{pod.directory}/{CONSOLE_FILE}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = (printable(line.rstrip("\r\n")) for line in file)
            if arguments.as_json:
                print_json(list(lines))
            else:
                for line in lines:
                    print(line)
    except FileNotFoundError:
        raise NotFound(f"there is no console of a pod {pod.id}: {path} does not exist") from None
    return 0
