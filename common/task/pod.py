"""The containers of one pod: made and removed as wholes, their exits, signals and figures.

`TaskService` puts the engine's protocol on top of it; a sandbox uses it to stop, recover and clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal as signals
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from google.protobuf.message import Message

from common.cgroup import (
    Hierarchies,
    MigrationPrimer,
    OomWatcher,
    kill_all,
    pids,
    read_metrics,
    remove_leaf,
    signal_all,
)
from common.completion import Completion
from common.errors import AlreadyExists, FailedPrecondition, NotFound, SandboxdError
from common.linux.pidfd import is_same_process, start_time
from common.log import bound, get_logger
from common.process.exits import ExitStatus, ExitWatcher
from common.records import UnreadableRecord, quarantine_record, read_record, write_record
from common.task.backend import (
    ContainerPreparer,
    ContainerRequest,
    EventSink,
    PreparedContainer,
    TaskBackend,
)
from common.task.container import Container, Process
from common.task.records import RECORD_FILE, ContainerRecord, prepared_of, record_of
from common.task.states import ContainerState, ContainerTrigger, ProcessState, ProcessTrigger
from common.task.stdio import Stdio, StdioSpec
from proto.gen.containerd.events import task_pb2 as events

_OOM_EVENT_TIMEOUT_S = 2.0
_KILL_TIMEOUT_S = 10.0
_UNKNOWN_EXIT_CODE = 255

log = get_logger()


class TaskParts:
    """What every pod's Task service of a daemon is assembled from; one object for all pods."""

    __slots__ = ("backend", "events", "exits", "hierarchies", "ooms", "primer")

    def __init__(
        self,
        backend: TaskBackend,
        exits: ExitWatcher,
        events: EventSink,
        ooms: OomWatcher,
        hierarchies: Hierarchies,
    ) -> None:
        self.backend = backend
        self.exits = exits
        self.events = events
        self.ooms = ooms
        self.hierarchies = hierarchies
        self.primer = MigrationPrimer(hierarchies)


class TaskPod:
    """The containers of one pod."""

    __slots__ = ("containers", "directory", "parts", "preparer", "sandbox_id", "stopped")

    def __init__(
        self, sandbox_id: str, parts: TaskParts, preparer: ContainerPreparer, directory: str
    ) -> None:
        """:param directory: the pod's own directory, for console sockets."""
        self.sandbox_id = sandbox_id
        self.parts = parts
        self.preparer = preparer
        self.directory = directory
        self.containers: dict[str, Container] = {}
        self.stopped = False

    def container(self, container_id: str) -> Container:
        """Return a container.

        :raise NotFound: there is none of this id in this pod.
        """
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id[:100]!r} in pod {self.sandbox_id}") from None

    # -- making and removing -----------------------------------------------------------------------

    async def create_container(self, request: ContainerRequest) -> Container:
        """Prepare and make a container, up to its waiting first process; afterwards all of it exists, or nothing.

        :raise FailedPrecondition: the pod has been stopped.
        """
        if self.stopped:
            raise FailedPrecondition(f"pod {self.sandbox_id} has been stopped")
        self.parts.primer.prime()
        container = Container(request.container_id, request.bundle, request.stdio)
        self.containers[container.id] = container
        creation = container.creation = Completion[bool]()
        try:
            await self._create(container, request)
        finally:
            container.creation = None
            creation.set(True)
        return container

    async def _create(self, container: Container, request: ContainerRequest) -> None:
        async with AsyncExitStack() as undo:
            undo.callback(self.containers.pop, container.id)
            container.prepared = await self.preparer.prepare(request, undo, self._is_first_process)
            container.record = record_of(request, container.prepared)
            stdio = Stdio(request.stdio, container.prepared.owner, self.directory)
            container.init.stdio = stdio
            undo.callback(stdio.close)
            with self.parts.exits.adoption():
                try:
                    pid = await self.parts.backend.create(container.id, container.prepared, stdio)
                except AlreadyExists:
                    raise
                except BaseException:
                    await self._kill_unknown(container.id, container.prepared)
                    raise
                undo.push_async_callback(self.parts.backend.delete, container.id, container.prepared)
                self._adopt(container, container.init, pid)
            undo.callback(container.init.close)
            stdio.release_child()
            await self.preparer.settle(container.prepared)
            self._watch_memory(container)
            undo.callback(self._forget_memory, container)
            container.advance(ContainerTrigger.READY)
            self.save(container, pid=pid, start_time=start_time(pid))
            undo.pop_all()

    async def start_exec(self, container: Container, process: Process) -> None:
        """Run a registered exec; on failure it is registered as before."""
        prepared = container.ready()
        stdio = Stdio(process.stdio_spec, process.owner, self.directory)
        try:
            if stdio.terminal is not None and process.window is not None:
                stdio.terminal.resize(*process.window)
            if process.stdin_closed:
                stdio.close_stdin()
            process.stdio = stdio
            with self.parts.exits.adoption():
                pid = await self.parts.backend.exec(
                    container.id, process.exec_id, prepared, process.command, stdio
                )
                self._adopt(container, process, pid)
            stdio.release_child()
            process.command = b""
        except BaseException:
            process.stdio = None
            stdio.close()
            raise

    async def delete_container(self, container: Container) -> None:
        """Take away a container and everything that was made for it; what runs in it is killed.

        A failure leaves it deletable: nothing is forgotten before it is gone.
        """
        container.advance(ContainerTrigger.DELETE)
        try:
            assert container.prepared is not None
            if container.init.runs:
                # It may have ended a moment ago, which is not told yet.
                with contextlib.suppress(NotFound):
                    container.init.signal(signals.SIGKILL)
                await container.init.end.wait()
            await self._kill_leftovers(container)
            for process in (container.execs or {}).values():
                process.close()
            container.execs = None
            await self.parts.backend.delete(container.id, container.prepared)
            self._forget_memory(container)
            await self.preparer.release(container.prepared)
        except BaseException:
            container.advance(ContainerTrigger.FAIL)
            raise
        container.init.close()
        self.containers.pop(container.id, None)

    async def stop(self, timeout_s: float) -> None:
        """Kill every process of every container and wait for their ends; from now on none is created.

        One that is being created is waited for: what the pod shares is in its hands until then.

        :raise FailedPrecondition: something was not created or did not die in time.
        """
        self.stopped = True
        try:
            async with asyncio.timeout(timeout_s):
                for container in list(self.containers.values()):
                    if container.creation is not None:
                        await container.creation.wait()
                    if container.init.runs:
                        with contextlib.suppress(NotFound):
                            await self.signal(container, container.init, signals.SIGKILL, everything=True)
                for container in list(self.containers.values()):
                    if container.init.runs:
                        await container.init.end.wait()
        except TimeoutError:
            alive = [c.id for c in self.containers.values() if c.creation is not None or c.init.runs]
            raise FailedPrecondition(
                f"killed, but still there after {timeout_s:g} s: container {', '.join(alive)}"
            ) from None

    async def delete_all(self) -> None:
        """Remove every container; the first failure is raised after all were tried."""
        failure: BaseException | None = None
        for container in list(self.containers.values()):
            try:
                await self.delete_container(container)
            except (SandboxdError, OSError) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    # -- processes ---------------------------------------------------------------------------------

    async def signal(self, container: Container, process: Process, signum: int, *, everything: bool) -> None:
        """Send a signal to a process, or with `everything` to all processes of its container.

        :raise NotFound: the process has ended.
        """
        reached: set[int] = set()
        if everything and container.cgroup is not None and process.exit is None:
            reached = signal_all(container.cgroup, signum)
        if process.pid not in reached:
            process.signal(signum)
        if (
            signum == signals.SIGKILL
            and container.init.state is ProcessState.PAUSED
            and container.prepared is not None
        ):
            # A frozen process dies only once it is thawed (cgroup v1 freezer).
            with contextlib.suppress(SandboxdError):
                await self.parts.backend.resume(container.id, container.prepared)

    def live_pids(self) -> list[int]:
        """Return the pids of the first processes that have not ended."""
        return [c.init.pid for c in self.containers.values() if c.init.pid and c.init.exit is None]

    def pids_of(self, container: Container) -> list[int]:
        """Return the pids of all processes of a container, as the host counts them."""
        return pids(container.cgroup) if container.cgroup is not None else []

    def metrics_of(self, container: Container) -> Message:
        """Measure a container.

        :raise NotFound: it has no cgroup any more.
        """
        if container.cgroup is None:
            raise NotFound(f"container {container.id} has no cgroup to measure")
        return read_metrics(container.cgroup)

    def save(self, container: Container, **changes: Any) -> None:
        """Write a container's record with some fields changed."""
        assert container.record is not None
        container.record = dataclasses.replace(container.record, **changes)
        write_record(f"{container.record.directory}/{RECORD_FILE}", container.record)

    def _adopt(self, container: Container, process: Process, pid: int) -> None:
        process.pid = pid
        process.watch = self.parts.exits.watch(pid, partial(self._on_exit, container, process))

    def _is_first_process(self, pid: int) -> bool:
        return any(c.init.pid == pid and c.init.exit is None for c in self.containers.values())

    # -- ends (called by the event loop: nothing may be raised to nobody) --------------------------

    def _on_exit(self, container: Container, process: Process, status: ExitStatus) -> None:
        if process.exec_id:
            self._finish(container, process, status)
            return
        oom_killed = self._check_memory(container)
        if container.ends_whole and not oom_killed:
            self._finish(container, process, status)
        else:
            asyncio.get_running_loop().create_task(self._finish_late(container, status, oom_killed))

    async def _finish_late(self, container: Container, status: ExitStatus, oom_killed: bool) -> None:
        """Do what must be done before anybody learns of the end."""
        if oom_killed:
            # An engine that learns of the exit first reports a plain error (engine contract section 0.7).
            await self.parts.events.flush(_OOM_EVENT_TIMEOUT_S)
        try:
            await self._kill_leftovers(container)
        except (SandboxdError, OSError) as error:
            log.warning("container.leftovers_survived", error=error)
        self._finish(container, container.init, status)

    def _finish(self, container: Container, process: Process, status: ExitStatus) -> None:
        with bound(sandbox_id=self.sandbox_id, container_id=container.id):
            starting = process.state is ProcessState.STARTING
            process.finish(status)
            if not starting:
                self.publish_exit(container, process, status)
            if process.exec_id:
                return
            log.info("container.exited", exit_code=status.code, pid=process.pid)
            if container.state is ContainerState.READY:
                try:
                    self.save(container, exit_code=status.code, exited_at_ns=status.exited_at_ns)
                except OSError as error:
                    log.error("container.record_not_written", error=error)

    def publish_exit(self, container: Container, process: Process, status: ExitStatus) -> None:
        """Tell the engine of an end. Whoever starts a process tells the end that comes meanwhile, after the start."""
        event = events.TaskExit(
            container_id=container.id,
            id=process.exec_id or container.id,
            pid=process.pid,
            exit_status=status.code,
        )
        event.exited_at.FromNanoseconds(status.exited_at_ns)
        self.parts.events.publish("/tasks/exit", event)

    async def _kill_unknown(self, container_id: str, prepared: PreparedContainer) -> None:
        """Kill what a runtime has left that was itself killed, and remove the cgroup that holds it."""
        cgroup = self.parts.hierarchies.of_container(prepared.cgroups_path, container_id)
        if cgroup is not None:
            await kill_all(cgroup, _KILL_TIMEOUT_S)
            remove_leaf(cgroup)

    async def _kill_leftovers(self, container: Container) -> None:
        """Kill what outlived the first process."""
        if container.cgroup is not None and not container.ends_whole:
            await kill_all(container.cgroup, _KILL_TIMEOUT_S)

    # -- memory ------------------------------------------------------------------------------------

    def _watch_memory(self, container: Container) -> None:
        container.cgroup = self.parts.hierarchies.locate(container.init.pid)
        container.oom_watch = self.parts.ooms.watch(container.cgroup, partial(self._on_oom, container))

    def _forget_memory(self, container: Container) -> None:
        if container.oom_watch is not None:
            container.oom_watch.cancel()
            container.oom_watch = None

    def _check_memory(self, container: Container) -> bool:
        """Look at the kernel's counter before the cgroup goes, and tell whether it has ever killed in there."""
        if container.oom_watch is not None:
            container.oom_watch.check()
        return container.oom_kills > 0

    def _on_oom(self, container: Container, kills: int) -> None:
        container.oom_kills += kills
        self.parts.events.publish("/tasks/oom", events.TaskOOM(container_id=container.id))
        log.info("container.oom", sandbox_id=self.sandbox_id, container_id=container.id, kills=kills)

    # -- recovery ----------------------------------------------------------------------------------

    async def recover(self, tasks_directory: str) -> None:
        """Take up the containers that an earlier daemon has left: go on with those that exist, undo half-made ones."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(tasks_directory)):
                path = f"{tasks_directory}/{name}/{RECORD_FILE}"
                try:
                    record, of_this_boot = read_record(path, ContainerRecord)
                except FileNotFoundError:
                    continue
                except UnreadableRecord as error:
                    log.error("container.record_unreadable", kept_as=quarantine_record(path), error=error)
                    continue
                except FailedPrecondition as error:
                    log.error("container.not_recovered", record=path, error=error)
                    continue
                try:
                    await self._recover_container(record, of_this_boot)
                except (SandboxdError, OSError) as error:
                    # It is known by now: what is left of it goes with its Delete, or with the pod.
                    log.error("container.not_recovered", record=path, error=error)

    async def _recover_container(self, record: ContainerRecord, of_this_boot: bool) -> None:
        stdio = StdioSpec(record.terminal, record.stdin, record.stdout, record.stderr)
        container = Container(record.container_id, record.bundle, stdio)
        container.prepared, container.record = prepared_of(record), record
        container.advance(ContainerTrigger.READY)
        init = container.init
        init.pid = record.pid
        if record.started:
            init.advance(ProcessTrigger.START)
            init.advance(ProcessTrigger.STARTED)
        self.containers[container.id] = container
        if record.exit_code >= 0:
            init.finish(ExitStatus(record.exit_code, record.exited_at_ns))
        elif of_this_boot and record.pid and is_same_process(record.pid, record.start_time):
            self._adopt(container, init, record.pid)
            self._watch_memory(container)
        else:
            init.finish(ExitStatus(_UNKNOWN_EXIT_CODE, time.time_ns(), known=False))
        if not record.pid or not of_this_boot:
            await self.delete_container(container)
            log.info("container.rolled_back", sandbox_id=self.sandbox_id, container_id=container.id)
