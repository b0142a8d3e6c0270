"""Run a command in a container, with the user, environment and limits of the container's own process.

What is sent to sandboxctl (SIGINT, SIGTERM, SIGHUP) goes on to the command; a second one kills it.

Exit code: the command's; 128 and the signal's number if one has ended it; 125 if it could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, SandboxdError
from common.linux.pidfd import is_same_process
from common.linux.terminal import get_window_size
from sandboxctl.accounts import Account, find_account
from sandboxctl.daemons import find_daemons
from sandboxctl.ids import parse_id
from sandboxctl.pods import Container, ContainerFacts, find_container
from sandboxctl.streams import InputFifo, Output, feed, raw_terminal
from sandboxctl.tasks import Process, tasks_of
from sandboxers.isolation import IsolationType

FAILURE_STATUS = 125

_RUN_DIRECTORY = "/run"
_KILL_TIMEOUT_S = 10.0
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="pass the input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        help="run it as another user: by number or, in containers of the type runc, by a name of the container's own",
    )
    parser.add_argument("-w", "--workdir", metavar="DIR", help="run it in this directory of the container")
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a variable; may be repeated",
    )
    parser.add_argument("container", metavar="CONTAINER", help="a container, or a pod with only one")
    parser.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the program and its arguments"
    )


def run(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise InvalidArgument("no command is given: sandboxctl exec CONTAINER COMMAND [ARGUMENT...]")
    if arguments.as_json:
        raise InvalidArgument("exec prints what the command prints: there is no --json")
    if arguments.tty and arguments.interactive and not os.isatty(0):
        raise InvalidArgument("the input is no terminal: leave -t away")
    container = find_container(find_daemons(arguments), arguments.container)
    if container.state != "running":
        raise FailedPrecondition(f"container {container.id} is {container.state}")
    spec = _process_spec(container, command, arguments)
    return asyncio.run(_execute(container, spec, interactive=arguments.interactive))


def _process_spec(container: Container, command: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the OCI `process` of a command, after that of the container's own."""
    process = dict(container.spec.get("process") or {})
    if not process:
        raise FailedPrecondition(
            f"container {container.id} cannot be taken as a pattern: {container.record.bundle}/config.json is gone"
        )
    process |= {"args": command, "terminal": arguments.tty}
    process.pop("consoleSize", None)
    for assignment in arguments.env:
        if "=" not in assignment.strip("="):
            raise InvalidArgument(f"--env {assignment}: expected NAME=VALUE")
    process["env"] = [*process.get("env", []), *arguments.env]
    if arguments.tty and not any(entry.startswith("TERM=") for entry in process["env"]):
        process["env"].append(f"TERM={os.environ.get('TERM', 'xterm')}")
    if arguments.workdir:
        process["cwd"] = arguments.workdir
    if arguments.user:
        account = _find_account(container, arguments.user)
        process["user"] = {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)}
    return process


def _find_account(container: Container, user: str) -> Account:
    if container.pod.daemon.type is IsolationType.RUNC:
        return _find_in_root(container.record, user)
    # Of others the root file system is out of reach: in a guest, or not that of any process.
    name, separator, group = user.partition(":")
    uid, gid = parse_id(name), parse_id(group) if separator else 0
    if uid is None or gid is None:
        raise InvalidArgument(
            f"--user {user[:60]}: expected UID or UID:GID, since names are known in containers of the type runc alone"
        )
    return Account(uid, gid)


def _find_in_root(record: ContainerFacts, user: str) -> Account:
    try:
        root = os.open(f"/proc/{record.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FailedPrecondition(f"container {record.container_id} has ended") from None
    try:
        # Now that the pid cannot become somebody else's any more.
        if not is_same_process(record.pid, record.start_time):
            raise FailedPrecondition(f"container {record.container_id} has ended")
        return find_account(f"/proc/self/fd/{root}", user)
    finally:
        os.close(root)


async def _execute(container: Container, spec: dict[str, Any], *, interactive: bool) -> int:
    terminal = spec["terminal"]
    async with contextlib.AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(tasks_of(container.pod))
        fifos = _Fifos(stack, interactive=interactive, terminal=terminal)
        process = tasks.process(container.id, f"ctl-{secrets.token_hex(6)}")
        await process.add(spec, fifos.paths)
        stack.push_async_callback(_forget, process)
        reactions = _Reactions(process)
        if terminal and interactive:
            stack.enter_context(raw_terminal(0))
        if terminal and os.isatty(1):
            # Before the start: it is set as soon as the terminal exists, which may be a moment after the program does.
            await reactions.resize()
            reactions.follow_size()
        await process.start()
        fifos.discard_paths()
        reactions.pass_signals_on()
        outputs = fifos.begin_outputs()
        stack.callback(_close, outputs)
        if fifos.input:
            feeding = asyncio.ensure_future(feed(process, fifos.input.take()))
            stack.callback(feeding.cancel)
        status = await process.wait()
        # Whoever reads our output may never go on.
        reactions.give_signals_to(lambda: _close(outputs))
        await asyncio.gather(*(output.finish() for output in outputs))
    return status


class _Fifos:
    """The three streams, as FIFOs in a directory that is gone as soon as both sides have them open."""

    def __init__(self, stack: contextlib.AsyncExitStack, *, interactive: bool, terminal: bool) -> None:
        """:param stack: what is made is undone with it."""
        self._directory = tempfile.mkdtemp(prefix="sandboxctl-", dir=_RUN_DIRECTORY)
        stack.callback(self.discard_paths)
        self.paths: dict[str, str] = {}
        self.input: InputFifo | None = None
        self._readers: dict[int, int] = {}
        """What we read from the process, by where it goes."""
        stack.callback(self._close_readers)
        for name, sink in ("stdout", 1), ("stderr", 2):
            if sink == 1 or not terminal:
                os.mkfifo(self._path(name), 0o600)
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._readers[sink] = os.open(self.paths[name], flags)
        if interactive:
            self.input = InputFifo(self._path("stdin"))
            stack.callback(self.input.close)

    def _path(self, name: str) -> str:
        self.paths[name] = f"{self._directory}/{name}"
        return self.paths[name]

    def begin_outputs(self) -> list[Output]:
        """Carry the output from now on: the process has its streams."""
        outputs = [Output(reader, sink) for sink, reader in self._readers.items()]
        self._readers.clear()
        return outputs

    def _close_readers(self) -> None:
        while self._readers:
            os.close(self._readers.popitem()[1])

    def discard_paths(self) -> None:
        """Remove the names: who has the streams open goes on. Idempotent."""
        for path in self.paths.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)


class _Reactions:
    """What signals to us mean for a command: it may have ended whenever one comes."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[None]] = set()
        self._told = False

    def pass_signals_on(self) -> None:
        """From now on, hand on what asks us to end; from the second on as SIGKILL."""
        for signum in _END_SIGNALS:
            self._loop.add_signal_handler(signum, self._on_end_signal, signum)

    def follow_size(self) -> None:
        """From now on, give the command's terminal the size of ours when that changes."""
        self._loop.add_signal_handler(signal.SIGWINCH, lambda: self._begin(self.resize()))

    async def resize(self) -> None:
        """Give the command's terminal the size of ours."""
        with contextlib.suppress(SandboxdError, OSError):
            await self._process.resize(*get_window_size(1))

    def give_signals_to(self, react: Callable[[], object]) -> None:
        """From now on, call `react` for what asks us to end: the command has ended."""
        for signum in _END_SIGNALS:
            self._loop.add_signal_handler(signum, react)

    def _on_end_signal(self, signum: int) -> None:
        self._begin(self._kill(signum))

    async def _kill(self, signum: int) -> None:
        told, self._told = self._told, True
        with contextlib.suppress(SandboxdError):
            await self._process.kill(signal.SIGKILL if told else signum)

    def _begin(self, call: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)


def _close(outputs: Sequence[Output]) -> None:
    for output in outputs:
        output.close()


async def _forget(process: Process) -> None:
    """Let the daemon forget the command, which is killed if it runs."""
    with contextlib.suppress(FailedPrecondition):
        await process.delete()
        return
    with contextlib.suppress(NotFound):
        await process.kill(signal.SIGKILL)
    try:
        await asyncio.wait_for(process.wait(), _KILL_TIMEOUT_S)
    except TimeoutError:
        raise DeadlineExceeded(
            "the command was killed and has not ended: it stays as long as its container"
        ) from None
    await process.delete()
