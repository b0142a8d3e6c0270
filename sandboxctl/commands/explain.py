"""Show how a pod was started, step by step, and tell what it waits for.

POD is the beginning of an id or a name, with or without its namespace; also that of a pod which is gone, for as long
as its start is in the log of the last starts: of several of one name it is the last. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from common.errors import InvalidArgument, NotFound, SandboxdError
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.explanation import Evidence, Start, explain, title_of
from sandboxctl.output import print_json, printable
from sandboxctl.pods import Pod, find_pod
from sandboxers.start_log import read_starts

_ANSWER_TIMEOUT_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD")


def run(arguments: argparse.Namespace) -> int:
    daemons = find_daemons(arguments)
    daemon, pod_id, pod = _find(daemons, arguments.pod)
    starts = [start for start in read_starts(daemon.config.state_dir) if start.get("sandbox_id") == pod_id]
    live, problem = _ask(daemon, pod_id) if pod is not None and not pod.problem else (None, "")
    evidence = Evidence(pod, starts, live, problem, in_machine=hasattr(daemon.config, "guest"))
    sentences = list(explain(evidence))
    name = pod.name if pod is not None else next((start["pod"] for start in starts if start["pod"]), "")
    state = str(live["state"]) if live is not None else pod.state if pod is not None else "gone"
    if arguments.as_json:
        print_json(
            {
                "id": pod_id,
                "type": daemon.type.value,
                "name": name,
                "state": state,
                "starts": starts,
                "operations": live.get("operations", []) if live is not None else [],
                "explanation": sentences,
            }
        )
        return 0
    print(printable(f"{name or 'pod'}  {pod_id[:13]}  {daemon.type.value}  {state}"))
    if starts:
        print()
        for at, took, text in _timeline([*starts, *(live.get("operations", ()) if live is not None else ())]):
            print(f"{at:>10}  {took:>9}  {text}")
    print()
    for sentence in sentences:
        print(sentence)
    return 0


def _find(daemons: Sequence[Daemon], wanted: str) -> tuple[Daemon, str, Pod | None]:
    """Return the pod of this id or name: one on record, else the last one of which a start is in a log.

    :raise NotFound: there is none, nor was there lately.
    :raise InvalidArgument: several ids begin like this, or several pods on record are called so.
    """
    try:
        pod = find_pod(daemons, wanted)
    except NotFound as unknown:
        gone: dict[str, tuple[Daemon, str]] = {}
        for daemon in daemons:
            for start in read_starts(daemon.config.state_dir):
                name = start["pod"] or gone.get(start["sandbox_id"], (daemon, ""))[1]
                gone[start["sandbox_id"]] = daemon, name
        begun = [pod_id for pod_id in gone if wanted and pod_id.startswith(wanted)]
        named = [pod_id for pod_id, (_, name) in gone.items() if wanted and f"/{name}".endswith(f"/{wanted}")]
        if not begun and not named:
            raise NotFound(f"{unknown}, nor had one lately") from None
        if len(begun) > 1 and wanted not in begun:
            raise InvalidArgument(
                f"{wanted!r} is not unique: it stands for {len(begun)}, such as {begun[0]} and {begun[1]}"
            ) from None
        pod_id = wanted if wanted in begun else (begun or named)[-1]
        return gone[pod_id][0], pod_id, None
    return pod.daemon, pod.id, pod


def _ask(daemon: Daemon, pod_id: str) -> tuple[dict[str, Any] | None, str]:
    """Return what a daemon says of a pod now, or why that is unknown."""
    if not daemon.is_running():
        unit = f"sandboxd@{daemon.type.value}"
        return (
            None,
            f"Its daemon does not run, and nothing is done for it until it does: `systemctl start {unit}`.",
        )
    from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
    from sandboxctl.client import controller_of

    request = api.ControllerStatusRequest(sandbox_id=pod_id, verbose=True)
    try:
        with controller_of(daemon) as controller:
            status = controller.Status(request, timeout=_ANSWER_TIMEOUT_S)
    except SandboxdError as error:
        return None, f"Its daemon runs, but gives no account of it ({error}): see the log of the daemon."
    return json.loads(status.info["info"]), ""


def _timeline(operations: Sequence[Start]) -> Iterator[tuple[str, str, str]]:
    """Yield when, how long and what of each operation, of its steps, and of what the engine has done in between."""
    yield "at", "took", "what"
    begun_ns = operations[0]["began_at_ns"]
    free_at_us = 0.0
    for each in sorted(operations, key=lambda operation: int(operation["began_at_ns"])):
        at_us = (each["began_at_ns"] - begun_ns) / 1000
        if at_us > free_at_us > 0:
            yield _ms(free_at_us), _ms(at_us - free_at_us), "- the engine, between its calls"
        yield _ms(at_us), _ms(each["age_us"]), title_of(each)
        before_us = 0
        for step, step_us in each["steps"]:
            yield _ms(at_us + step_us), _ms(step_us - before_us), f"    {printable(_words(step))}"
            before_us = step_us
        if each["error"]:
            yield _ms(at_us + each["age_us"]), _ms(each["age_us"] - before_us), "    FAILED"
        free_at_us = max(free_at_us, at_us + each["age_us"])


def _words(step: str) -> str:
    subject, _, words = step.partition(".")
    return (words if subject in ("sandbox", "container") else f"{subject} {words}").replace("_", " ")


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.1f}"
