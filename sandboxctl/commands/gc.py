"""Compare records, host and engine; show what is left over, and remove what is provably nobody's.

Where no daemon runs it is removed here, else by the daemon. Images that `sandboxctl run` has unpacked and no pod uses
are shown, and removed with --images alone: the next pod may be made of them.

Exit code 0: nothing is left over but images; 1: something is that was not, or must not be, removed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from typing import NamedTuple

from common.descriptors.store import NoStore
from common.errors import FailedPrecondition, SandboxdError
from common.journal import ConnectionJournal
from common.log import Format, Level
from common.log import configure as configure_log
from sandboxctl.daemons import Daemon, find_daemons_if_any
from sandboxctl.output import print_json, print_table
from sandboxctl.ownership import list_owned
from sandboxctl.pods import list_unremoved
from sandboxers.embedded import embedded_pods
from sandboxers.garbage import RECORD_FILE, GarbageRecord, read_garbage_record
from sandboxers.isolation import sandboxer_of
from sandboxers.leftovers import Action, Leftover, Survey, remove_unserved
from sandboxers.lock import owning
from sandboxers.outlasting import Outlasting
from sandboxers.sandbox import Daemonised

_REMOVAL_TIMEOUT_S = 60.0
_JOURNAL_FILE = ".gc-journal"
_REMOVED = "removed"


class Row(NamedTuple):
    """A line of the table; `type` is that of the daemon, None where it is of none."""

    type: str | None
    kind: str
    what: str
    why: str
    action: str


class Collection(NamedTuple):
    """What was found for a daemon: each leftover with what became of it, why the engine did not tell ("" if it did),
    and what the daemon itself has removed."""

    results: dict[Leftover, str]
    engine_error: str
    figures: GarbageRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show it")
    parser.add_argument("--images", action="store_true", help="remove images that no pod uses as well")


def run(arguments: argparse.Namespace) -> int:
    configure_log(Level.ERROR, Format.JSON)
    if embedded_pods() and not arguments.dry_run:
        from sandboxctl.embedded.engine import collect_abandoned  # late: mostly there are none

        collect_abandoned()
    daemons = [daemon for daemon in find_daemons_if_any(arguments) if os.path.isdir(daemon.config.state_dir)]
    collections = {daemon: asyncio.run(_collect(daemon, dry_run=arguments.dry_run)) for daemon in daemons}
    rows = [
        Row(daemon.type.value, left.kind.value, left.what, left.why, result)
        for daemon, collection in collections.items()
        for left, result in collection.results.items()
    ]
    images, images_error = _collect_images(remove=arguments.images, dry_run=arguments.dry_run)
    if arguments.as_json:
        print_json([row._asdict() for row in rows + images])
    else:
        _print(rows + images, list(collections.values()))
    for error in sorted({collection.engine_error for collection in collections.values()} - {""}):
        print(f"sandboxctl: {error}; what it may have forgotten stays", file=sys.stderr)
    if images_error:
        print(f"sandboxctl: {images_error}; all images stay", file=sys.stderr)
    unremoved = list_unremoved(daemons)
    for pod in unremoved:
        print(f"sandboxctl: pod {pod.id} is {pod.state}: 'sandboxctl rm {pod.id}' tells why", file=sys.stderr)
    failed = bool(unremoved) or (arguments.images and bool(images_error))
    return int(failed or any(row.action != _REMOVED for row in rows))


def _collect_images(*, remove: bool, dry_run: bool) -> tuple[list[Row], str]:
    """Return what became of the images, or why nothing did."""
    from sandboxctl.embedded import unused_images  # late: only `run` has any

    try:
        if remove and not dry_run:
            directories, action = asyncio.run(unused_images.remove_unused_images()), _REMOVED
        else:
            directories = unused_images.find_unused_images()
            action = (Action.REMOVE if remove else Action.KEEP).value
    except (SandboxdError, OSError) as error:
        return [], str(error)
    return [Row(None, "image", directory, "no pod uses it", action) for directory in directories], ""


async def _collect(daemon: Daemon, *, dry_run: bool) -> Collection:
    config = daemon.config
    with contextlib.ExitStack() as stack:
        sandboxer: Daemonised | None = None
        try:
            stack.enter_context(owning(config.state_dir))
        except FailedPrecondition:
            pass  # a daemon runs, and what it holds is its own
        else:
            # Without a store, and with a journal of its own: what a supervisor keeps is for the next daemon.
            journal = ConnectionJournal(f"{config.state_dir}/{_JOURNAL_FILE}", NoStore())
            sandboxer = sandboxer_of(daemon.type)(config, Outlasting(NoStore(), journal, None))
            stack.callback(sandboxer.close)

        survey = Survey(config.state_dir, config.gc.grace_s, lambda: list_owned(daemon), sandboxer)
        leftovers = await survey.find()
        results = {leftover: leftover.action.value for leftover in leftovers}
        if not dry_run:
            failures = _ask_daemon(daemon, leftovers)
            if sandboxer is not None:
                failures = await remove_unserved(
                    leftovers, sandboxer, config.state_dir, config.pod.stop_timeout_s
                )
            for leftover in leftovers:
                if leftover.action is not Action.KEEP:
                    failure = failures.get(leftover)
                    results[leftover] = f"not removed: {failure}" if failure else _REMOVED
    return Collection(results, survey.engine_error, read_garbage_record(f"{config.state_dir}/{RECORD_FILE}"))


def _ask_daemon(daemon: Daemon, leftovers: list[Leftover]) -> dict[Leftover, str]:
    asked = [leftover for leftover in leftovers if leftover.action is Action.ASK]
    if not asked:
        return {}
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import controller_of

    failures = {}
    for leftover in asked:
        try:
            with controller_of(daemon) as controller:
                request = api.ControllerShutdownRequest(sandbox_id=leftover.what)
                controller.Shutdown(request, timeout=_REMOVAL_TIMEOUT_S)
        except SandboxdError as error:
            failures[leftover] = str(error)
    return failures


def _print(rows: list[Row], collections: list[Collection]) -> None:
    if rows:
        print_table(("KIND", "WHAT", "WHY", "ACTION"), [row[1:] for row in rows])
    else:
        print("nothing is left over")
    if collections:
        pods = sum(collection.figures.sandboxes_removed for collection in collections)
        containers = sum(collection.figures.tasks_removed for collection in collections)
        print(f"sandboxd itself has removed {pods} pods and {containers} containers since the boot")
