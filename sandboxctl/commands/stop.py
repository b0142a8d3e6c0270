"""Stop pods or containers: what runs in them is asked to end, and killed when it has not in time.

What an engine believes to run is refused without --force: stop it there instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from common.errors import DeadlineExceeded, InvalidArgument, NotFound
from sandboxctl.daemons import find_daemons
from sandboxctl.output import print_done
from sandboxctl.ownership import require_unowned
from sandboxctl.pods import Container, Pod, find_pod_or_container
from sandboxctl.signals import signal_number
from sandboxers.embedded import is_embedded

_DEFAULT_TIMEOUT_S = 10
_KILL_TIMEOUT_S = 10.0
_ANSWER_S = 10.0
"""How much longer than the pod's own limit the daemon may take to answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="POD|CONTAINER", nargs="+")
    parser.add_argument("-f", "--force", action="store_true", help="also what an engine believes to run")
    parser.add_argument(
        "-t",
        "--timeout",
        type=int,
        metavar="SECONDS",
        default=_DEFAULT_TIMEOUT_S,
        help="kill what has not ended by then (default: %(default)s)",
    )
    parser.add_argument(
        "-s",
        "--signal",
        default="TERM",
        help="what a container's first process is asked with (default: %(default)s); pods have their own way",
    )


def run(arguments: argparse.Namespace) -> int:
    signum = signal_number(arguments.signal)
    if signum is None:
        raise InvalidArgument(f"{arguments.signal[:40]!r} is not a signal")
    if arguments.timeout < 0:
        raise InvalidArgument(f"--timeout {arguments.timeout}: expected a number of seconds")
    daemons = find_daemons(arguments)
    things = [find_pod_or_container(daemons, name) for name in arguments.ids]
    if not arguments.force:
        asyncio.run(require_unowned(things, "stop"))
    for thing in things:
        if isinstance(thing, Pod):
            _stop_pod(thing, arguments.timeout)
        else:
            asyncio.run(end_container(thing, signum, arguments.timeout))
    print_done([thing.id for thing in things], as_json=arguments.as_json)
    return 0


def _stop_pod(pod: Pod, timeout_s: int) -> None:
    if is_embedded(pod.id):
        from sandboxctl.embedded.engine import stop_pod
        from sandboxctl.embedded.records import load_record

        stop_pod(pod.daemon, load_record(pod.id), timeout_s)
        return
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import controller_of

    with controller_of(pod.daemon) as controller:
        request = api.ControllerStopRequest(sandbox_id=pod.id, timeout_secs=max(1, timeout_s))
        controller.Stop(request, timeout=timeout_s + _ANSWER_S)


async def end_container(
    container: Container, signum: int = signal.SIGKILL, timeout_s: float = _DEFAULT_TIMEOUT_S
) -> None:
    """Send a container a signal, and SIGKILL if it has not ended by then.

    :raise DeadlineExceeded: it has not ended for all that.
    """
    from sandboxctl.tasks import tasks_of

    async with tasks_of(container.pod) as tasks:
        process = tasks.process(container.id)
        ended = asyncio.ensure_future(process.wait())
        with contextlib.suppress(NotFound):  # it has ended already
            await process.kill(signum)
        done, _ = await asyncio.wait([ended], timeout=timeout_s)
        if not done:
            with contextlib.suppress(NotFound):
                await process.kill(signal.SIGKILL)
            done, _ = await asyncio.wait([ended], timeout=_KILL_TIMEOUT_S)
        if not done:
            raise DeadlineExceeded(f"container {container.id} has been killed and has not ended")
        await ended
