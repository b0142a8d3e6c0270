"""Wait until pods or containers have ended, and print their exit codes, one per line in the order given.

A daemon may be restarted meanwhile. Exit code 0 if all of them have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from common.errors import Unavailable
from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_json
from sandboxctl.pods import Container, Pod, find_pod_or_container

_RETRY_S = 0.2
_AWAY_S = 30.0
"""How long a daemon may be away, which is restarted, before that is an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="POD|CONTAINER", nargs="+")


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons(arguments)
    things = [find_pod_or_container(daemons, name) for name in arguments.ids]
    codes = {}
    for thing in things:
        codes[thing.id] = asyncio.run(_wait(thing)) if isinstance(thing, Container) else _wait_for_pod(thing)
        if not arguments.as_json:
            print(codes[thing.id], flush=True)
    if arguments.as_json:
        print_json([{"id": thing.id, "exitCode": codes[thing.id]} for thing in things])
    return 0


async def _wait(container: Container) -> int:
    from sandboxctl.tasks import tasks_of

    # A container that has ended may be in a pod without a Task service.
    if container.exit_code is not None:
        return container.exit_code
    # This connection outlives the daemon, as those of engines do.
    async with tasks_of(container.pod) as tasks:
        return await tasks.process(container.id).wait()


def _wait_for_pod(pod: Pod) -> int:
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import controller_of

    away_since = time.monotonic()
    while True:
        try:
            with controller_of(pod.daemon) as controller:
                return controller.Wait(api.ControllerWaitRequest(sandbox_id=pod.id)).exit_status
        except Unavailable:
            if time.monotonic() - away_since > _AWAY_S:
                raise
        time.sleep(_RETRY_S)
