"""Show what a container has written.

sandboxd keeps no logs: a container's output goes straight to its engine, which writes it to a file. What the container
has written to standard error is printed there too. With --json each line is a document of its own.
"""

from __future__ import annotations

import argparse
import json
import sys

from common.errors import InvalidArgument, NotFound
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.logs import LogLine, find_log
from sandboxctl.pods import find_container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container has ended")
    parser.add_argument("-n", "--tail", type=int, metavar="LINES", help="only the last lines")
    parser.add_argument(
        "--timestamps", action="store_true", help="tell when each line was written, if that is known"
    )
    parser.add_argument("container", metavar="CONTAINER", help="a container, or a pod with only one")


def run(arguments: argparse.Namespace) -> int:
    if arguments.tail is not None and arguments.tail < 0:
        raise InvalidArgument(f"--tail {arguments.tail}: expected a number of lines")
    daemons = find_daemons(arguments)
    container = find_container(daemons, arguments.container)
    log = find_log(container)
    pod_daemon = [container.pod.daemon]
    for line in log.lines(arguments.tail, lambda: arguments.follow and _runs(pod_daemon, container.id)):
        if arguments.as_json:
            print(
                json.dumps({"time": line.time, "stream": line.stream, "text": line.text}, ensure_ascii=False)
            )
            sys.stdout.flush()
        else:
            _print(line, timestamps=arguments.timestamps)
    return 0


def _runs(daemons: list[Daemon], container_id: str) -> bool:
    try:
        return find_container(daemons, container_id).state != "exited"
    except NotFound:
        return False


def _print(line: LogLine, *, timestamps: bool) -> None:
    file = sys.stderr if line.stream == "stderr" else sys.stdout
    prefix = f"{line.time} " if timestamps and line.time else ""
    print(prefix + line.text, end="" if line.partial else "\n", file=file, flush=True)
