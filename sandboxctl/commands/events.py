"""Tell what happens to pods and containers from now on, a line per event, until interrupted.

It is seen in the records that the daemons keep, for all isolation types, and goes on when a daemon is restarted. Of
commands that are run in containers (exec) nothing is told: probes run one every few seconds. With --json each line is
a document.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
from collections.abc import Sequence
from typing import Any

from sandboxctl.changes import Change, changes, look
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.output import printable, short


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--existing", action="store_true", help="begin with what is there already")


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons(arguments)
    asyncio.run(_tell(daemons, existing=arguments.existing, as_json=arguments.as_json))
    return 0


async def _tell(daemons: Sequence[Daemon], *, existing: bool, as_json: bool) -> None:
    async for change in changes(daemons, {} if existing else look(daemons)):
        print(json.dumps(_as_data(change), ensure_ascii=False) if as_json else _as_text(change), flush=True)


def _time(change: Change) -> str:
    at = datetime.datetime.fromtimestamp(change.at_ns / 1e9, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_text(change: Change) -> str:
    about = change.container or change.pod
    code = "" if change.exit_code is None else f"exit={change.exit_code}"
    words = (
        change.event.ljust(17),
        change.pod.daemon.type.value,
        short(about.id),
        printable(about.name),
        code,
    )
    return "  ".join((_time(change), *words)).rstrip()


def _as_data(change: Change) -> dict[str, Any]:
    return {
        "time": _time(change),
        "event": change.event,
        "type": change.pod.daemon.type.value,
        "pod": change.pod.id,
        "container": change.container.id if change.container else None,
        "name": (change.container or change.pod).name,
        "exitCode": change.exit_code,
    }
