"""Remove pods with all that is in them, or single containers that have ended.

What runs, or what an engine believes to be there, is refused without --force.
"""

from __future__ import annotations

import argparse
import asyncio

from common.errors import FailedPrecondition
from sandboxctl.commands import stop
from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_done
from sandboxctl.ownership import require_unowned
from sandboxctl.pods import Container, Pod, find_pod_or_container
from sandboxers.embedded import is_embedded
from sandboxers.states import SandboxState

_REMOVAL_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="POD|CONTAINER", nargs="+")
    parser.add_argument(
        "-f", "--force", action="store_true", help="also what runs, and what an engine believes to be there"
    )


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons(arguments)
    things = [find_pod_or_container(daemons, name, unremoved=True) for name in arguments.ids]
    if not arguments.force:
        for thing in things:
            _require_ended(thing)
        asyncio.run(require_unowned(things, "remove"))
    for thing in things:
        if isinstance(thing, Pod):
            _remove_pod(thing)
        else:
            asyncio.run(_remove_container(thing, force=arguments.force))
    print_done([thing.id for thing in things], as_json=arguments.as_json)
    return 0


def _require_ended(thing: Pod | Container) -> None:
    if isinstance(thing, Pod) and thing.state == SandboxState.READY.value:
        raise FailedPrecondition(f"pod {thing.id} is running: stop it first, or use --force")
    if isinstance(thing, Container) and thing.state in ("running", "paused"):
        raise FailedPrecondition(f"container {thing.id} is {thing.state}: stop it first, or use --force")


def _remove_pod(pod: Pod) -> None:
    if is_embedded(pod.id):
        from sandboxctl.embedded.engine import remove_pod
        from sandboxctl.embedded.records import load_record

        remove_pod(pod.daemon, load_record(pod.id))
        return
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import controller_of

    with controller_of(pod.daemon) as controller:
        controller.Shutdown(api.ControllerShutdownRequest(sandbox_id=pod.id), timeout=_REMOVAL_TIMEOUT_S)


async def _remove_container(container: Container, *, force: bool) -> None:
    from sandboxctl.tasks import tasks_of

    if force and container.exit_code is None:
        await stop.end_container(container)
    async with tasks_of(container.pod) as tasks:
        await tasks.process(container.id).delete()
