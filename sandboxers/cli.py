"""sandboxctl: what an operator asks a running sandboxd, and what can be done where none runs.

sandboxctl list                  the pods of a type, from its records
sandboxctl inspect SANDBOX_ID    all that the daemon knows of a pod, as JSON
sandboxctl gc [--dry-run]        show and remove what belongs to nobody any more
sandboxctl doctor                what this node has and lacks for the type
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys

import grpc

from common.descriptors.store import NoStore
from common.errors import FailedPrecondition, SandboxdError
from common.journal import ConnectionJournal
from common.log import Format, Level
from common.log import configure as configure_log
from common.records import read_record
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from sandboxers.doctor import Examination, Severity, print_findings
from sandboxers.engine import EngineList, list_engine
from sandboxers.garbage import RECORD_FILE as GARBAGE_FILE
from sandboxers.garbage import read_garbage_record
from sandboxers.isolation import DaemonConfig, Isolation, load_isolation
from sandboxers.leftovers import Action, Leftover, Survey, remove_unserved
from sandboxers.lock import owning
from sandboxers.outlasting import Outlasting
from sandboxers.registry import RECORD_FILE, SandboxRecord
from sandboxers.sandbox import Daemonised

_CALL_TIMEOUT_S = 10.0
_REMOVAL_TIMEOUT_S = 60.0
_JOURNAL_FILE = ".gc-journal"


def main() -> int:
    """Run one command; exit code 0, 1 with one line on standard error, or 2 for a wrong command line.

    `gc` ends with 0 if nothing is left over, and with 1 if something is that was not or must not be removed;
    `doctor` with 0 if pods can run.
    """
    parser = argparse.ArgumentParser(
        prog="sandboxctl", description="Ask a running sandboxd, or clean up after one."
    )
    parser.add_argument(
        "--config",
        default="/etc/sandboxd/runc.yaml",
        metavar="FILE",
        help="the daemon's configuration, which says where it listens (default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the pods")
    inspect = commands.add_parser("inspect", help="show a pod")
    inspect.add_argument("sandbox_id", metavar="SANDBOX_ID")
    gc = commands.add_parser(
        "gc",
        help="remove what belongs to nobody any more",
        description="Compare records, host and engine; show what is left over, and remove what is provably nobody's:"
        " itself where no sandboxd runs, else through it. Exit code 0: nothing is left; 1: something is.",
    )
    gc.add_argument("--dry-run", action="store_true", help="only show it")
    commands.add_parser(
        "doctor",
        help="tell what this node has and lacks",
        description="Examine this node for the type that the configuration selects, whether sandboxd runs or not."
        " Exit code 0: pods can run; 1: something that they need is missing.",
    )
    arguments = parser.parse_args()
    try:
        isolation, config = load_isolation(arguments.config)
        if arguments.command == "list":
            _list(config.state_dir)
        elif arguments.command == "gc":
            return asyncio.run(_collect_garbage(isolation, config, dry_run=arguments.dry_run))
        elif arguments.command == "doctor":
            return asyncio.run(_examine(isolation, config))
        else:
            _inspect(config.socket, arguments.sandbox_id)
    except (SandboxdError, OSError) as error:
        print(f"sandboxctl: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"sandboxctl: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    return 0


def _list(state_dir: str) -> None:
    for name in sorted(os.listdir(state_dir)):
        path = f"{state_dir}/{name}/{RECORD_FILE}"
        if not name.startswith(".") and os.path.exists(path):
            try:
                record, _ = read_record(path, SandboxRecord)
            except SandboxdError as error:
                print(f"{name}  {error}")
                continue
            pod = record.pod
            print(f"{pod['sandbox_id']}  {record.state:<24}  {pod['namespace']}/{pod['name']}")


def _inspect(socket_path: str, sandbox_id: str) -> None:
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        request = api.ControllerStatusRequest(sandbox_id=sandbox_id, verbose=True)
        status = api_grpc.ControllerStub(channel).Status(request, timeout=_CALL_TIMEOUT_S)
    print(json.dumps(json.loads(status.info["info"]), indent=2))


async def _examine(isolation: Isolation, config: DaemonConfig) -> int:
    async with Examination() as examination:
        findings = [*await examination.of_all_types(), *await isolation.examine(config, examination)]
    print_findings(findings)
    return int(any(finding.severity is Severity.ERROR for finding in findings))


async def _collect_garbage(isolation: Isolation, config: DaemonConfig, *, dry_run: bool) -> int:
    configure_log(Level.ERROR, Format.JSON)
    if not os.path.isdir(config.state_dir):
        print("nothing is left over")
        return 0
    with contextlib.ExitStack() as stack:
        sandboxer: Daemonised | None = None
        try:
            stack.enter_context(owning(config.state_dir))
        except FailedPrecondition:
            pass  # a daemon runs, and what it holds is its own
        else:
            # Without a store, and with a journal of its own: what a supervisor keeps is for the next daemon.
            journal = ConnectionJournal(f"{config.state_dir}/{_JOURNAL_FILE}", NoStore())
            sandboxer = isolation.sandboxer(config, Outlasting(NoStore(), journal, None))
            stack.callback(sandboxer.close)

        async def ask_engine() -> EngineList:
            return await list_engine(config.engine.address, _CALL_TIMEOUT_S)

        survey = Survey(config.state_dir, config.gc.grace_s, ask_engine, sandboxer)
        leftovers = await survey.find()
        results = {leftover: leftover.action.value for leftover in leftovers}
        if not dry_run:
            failures = _ask_daemon(config.socket, leftovers)
            if sandboxer is not None:
                failures = await remove_unserved(
                    leftovers, sandboxer, config.state_dir, config.pod.stop_timeout_s
                )
            for leftover in leftovers:
                if leftover.action is not Action.KEEP:
                    failure = failures.get(leftover)
                    results[leftover] = f"not removed: {failure}" if failure else "removed"
    _print_table(results)
    if survey.engine_error:
        print(f"sandboxctl: {survey.engine_error}; what it may have forgotten stays", file=sys.stderr)
    figures = read_garbage_record(f"{config.state_dir}/{GARBAGE_FILE}")
    print(
        f"sandboxd itself has removed {figures.sandboxes_removed} pods and {figures.tasks_removed} containers"
        " since the boot"
    )
    return int(any(result != "removed" for result in results.values()))


def _ask_daemon(socket_path: str, leftovers: list[Leftover]) -> dict[Leftover, str]:
    failures = {}
    doomed = [leftover for leftover in leftovers if leftover.action is Action.ASK]
    if doomed:
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            controller = api_grpc.ControllerStub(channel)
            for leftover in doomed:
                request = api.ControllerShutdownRequest(sandbox_id=leftover.what)
                try:
                    controller.Shutdown(request, timeout=_REMOVAL_TIMEOUT_S)
                except grpc.RpcError as error:
                    failures[leftover] = f"{error.code().name}: {error.details()}"
    return failures


def _print_table(results: dict[Leftover, str]) -> None:
    if not results:
        print("nothing is left over")
        return
    rows = [("KIND", "WHAT", "WHY", "ACTION")]
    rows += [(left.kind.value, left.what, left.why, result) for left, result in results.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)))


if __name__ == "__main__":
    sys.exit(main())
