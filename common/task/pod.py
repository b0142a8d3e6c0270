"""The containers of one pod: made and removed as wholes, their exits, signals and figures.

`TaskService` puts the engine's protocol on top of it; a sandbox uses it to stop, recover and clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal as signals
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from google.protobuf.message import Message

from common.cgroup import (
    kill_all,
    pids,
    remove_leaf,
    signal_all,
)
from common.completion import Completion
from common.errors import AlreadyExists, FailedPrecondition, NotFound, SandboxdError
from common.failpoints import Failpoint, failpoint
from common.linux.pidfd import start_time
from common.log import bound, get_logger
from common.process.exits import ExitStatus
from common.task.backend import ContainerPreparer, ContainerRequest, PreparedContainer, TaskParts
from common.task.calls import exit_event
from common.task.container import Container, Process
from common.task.records import EXEC_RECORDS, RECORD_FILE, ExecRecord, exec_path, record_of
from common.task.states import DELETABLE, ContainerState, ContainerTrigger, ProcessState
from common.task.stdio import PROCESS_GROUP, StdioSpec
from common.task.unmade import Unmade
from proto.gen.containerd.events import task_pb2 as events

_OOM_EVENT_TIMEOUT_S = 2.0
_KILL_TIMEOUT_S = 10.0
_OUTPUT_TIMEOUT_S = 2.0

log = get_logger()


class TaskPod:
    """The containers of one pod."""

    __slots__ = ("containers", "directory", "parts", "preparer", "sandbox_id", "stopped", "unmade")

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
        self.unmade = Unmade(directory, parts.store)

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
        request = dataclasses.replace(request, descriptors=self.parts.store.new_name(PROCESS_GROUP))
        container = Container(request.container_id, request.bundle, request.stdio)
        self.containers[container.id] = container
        creation = container.creation = Completion[bool]()
        try:
            await self._create(container, request)
        finally:
            container.creation = None
            creation.set(True)
            self.unmade.forget(container.id)
        return container

    async def _create(self, container: Container, request: ContainerRequest) -> None:
        async with AsyncExitStack() as undo:
            undo.callback(self.containers.pop, container.id)
            container.prepared = await self.preparer.prepare(request, undo, self._is_first_process)
            container.record = record_of(request, container.prepared)
            stdio = self.parts.stdio(
                request.stdio,
                container.prepared.owner,
                self.directory,
                self.parts.store,
                request.descriptors,
            )
            container.init.stdio = stdio
            undo.callback(stdio.close)
            failpoint(Failpoint.CONTAINER_STREAMS_OPENED)
            await stdio.attend()
            with self.parts.exits.adoption():
                try:
                    pid = await self.parts.backend.create(container.id, container.prepared, stdio)
                except AlreadyExists:
                    raise
                except BaseException:
                    await self.kill_unknown(container.id, container.prepared)
                    raise
                undo.push_async_callback(self.parts.backend.delete, container.id, container.prepared)
                failpoint(Failpoint.CONTAINER_MADE)
                self.adopt(container, container.init, pid)
            undo.callback(container.init.close)
            stdio.release_child()
            await self.preparer.settle(container.prepared)
            failpoint(Failpoint.CONTAINER_SETTLED)
            self.watch_memory(container)
            undo.callback(self._forget_memory, container)
            await stdio.kept()
            container.advance(ContainerTrigger.READY)
            self.save(container, pid=pid, start_time=start_time(pid))
            stdio.confirm()
            undo.pop_all()
        failpoint(Failpoint.CONTAINER_CREATED)

    def add_exec(self, container: Container, exec_id: str, stdio_spec: StdioSpec, command: bytes) -> Process:
        """Register an exec of which nothing is made yet; `command` is the JSON of its process."""
        prepared = container.ready()
        process = Process(container.id, exec_id, stdio_spec)
        checked, process.owner = self.preparer.prepare_process(prepared, command)
        process.record = ExecRecord(
            exec_id=exec_id,
            command=checked.decode("utf-8", "surrogateescape"),
            owner=list(process.owner),
            terminal=stdio_spec.terminal,
            stdin=stdio_spec.stdin,
            stdout=stdio_spec.stdout,
            stderr=stdio_spec.stderr,
            descriptors=self.parts.store.new_name(PROCESS_GROUP),
        )
        os.makedirs(f"{prepared.directory}/{EXEC_RECORDS}", 0o700, exist_ok=True)
        self.save_exec(container, process)
        if container.execs is None:
            container.execs = {}
        container.execs[exec_id] = process
        failpoint(Failpoint.EXEC_RECORDED)
        return process

    def forget_exec(self, container: Container, process: Process) -> None:
        """Take away an exec that does not run, and what is on disk of it."""
        process.close()
        self.unmade.forget(container.id, process.exec_id)
        if container.execs is not None:
            container.execs.pop(process.exec_id, None)
        if container.prepared is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(exec_path(container.prepared.directory, process.exec_id))
        failpoint(Failpoint.EXEC_DELETED)

    def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        """Take away the execs that do not run and are not among those listed, by container."""
        for container in self.containers.values():
            kept = listed.get(container.id, ())
            for process in list((container.execs or {}).values()):
                if process.exec_id not in kept and process.state in DELETABLE:
                    self.forget_exec(container, process)

    async def start_exec(self, container: Container, process: Process) -> None:
        """Run a registered exec; on failure it is registered as before."""
        prepared = container.ready()
        record = process.record
        assert record is not None
        command = record.command.encode("utf-8", "surrogateescape")
        stdio = process.stdio = self.parts.stdio(
            process.stdio_spec, process.owner, self.directory, self.parts.store, record.descriptors
        )
        failpoint(Failpoint.EXEC_STREAMS_OPENED)
        try:
            await stdio.attend()
            if stdio.terminal is not None and process.window is not None:
                stdio.terminal.resize(*process.window)
            if process.stdin_closed:
                stdio.close_stdin()
            with self.parts.exits.adoption():
                pid = await self.parts.backend.exec(container.id, process.exec_id, prepared, command, stdio)
                failpoint(Failpoint.EXEC_RUNNING)
                self.adopt(container, process, pid)
            started = start_time(pid)
            stdio.release_child()
            await stdio.kept()
            self.save_exec(container, process, command="", pid=pid, start_time=started)
            self.parts.backend.forget_exec(process.exec_id, prepared)
            stdio.confirm()
            failpoint(Failpoint.EXEC_STARTED)
        except BaseException:
            process.record = record
            process.undo_start()
            self.parts.backend.forget_exec(process.exec_id, prepared)
            raise
        finally:
            self.unmade.forget(container.id, process.exec_id)

    async def delete_container(self, container: Container) -> None:
        """Take away a container and everything that was made for it; what runs in it is killed.

        A failure leaves it deletable: nothing is forgotten before it is gone.
        """
        container.advance(ContainerTrigger.DELETE)
        failpoint(Failpoint.CONTAINER_DELETING)
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
                self.unmade.forget(container.id, process.exec_id)
            container.execs = None
            await self.parts.backend.delete(container.id, container.prepared)
            failpoint(Failpoint.CONTAINER_UNMADE)
            self._forget_memory(container)
            await self.preparer.release(container.prepared)
            failpoint(Failpoint.CONTAINER_DELETED)
        except BaseException:
            container.advance(ContainerTrigger.FAIL)
            raise
        container.init.close()
        self.containers.pop(container.id, None)

    def abandoned(self) -> list[str]:
        """Return the containers that nobody asks for any more: their bundle is gone, as an
        engine leaves it that has given a container up, and no call waits for their end."""
        return [
            container.id
            for container in self.containers.values()
            if container.state is ContainerState.READY
            and not container.init.end.waiter_count
            and not os.path.lexists(container.bundle)
        ]

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
        self.unmade.forget_all()
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

    def let_go(self) -> None:
        """Watch no process any more, and do nothing when one ends: the pod is left to a later daemon."""
        for container in self.containers.values():
            for process in container.processes():
                if process.watch is not None:
                    process.watch.cancel()

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
        return self.parts.measure(container.cgroup)

    def save(self, container: Container, **changes: Any) -> None:
        """Write a container's record with some fields changed."""
        assert container.record is not None
        container.record = dataclasses.replace(container.record, **changes)
        self.parts.write_record(f"{container.record.directory}/{RECORD_FILE}", container.record)

    def save_exec(self, container: Container, process: Process, **changes: Any) -> None:
        """Write an exec's record with some fields changed."""
        assert container.record is not None
        assert process.record is not None
        process.record = dataclasses.replace(process.record, **changes)
        self.parts.write_record(exec_path(container.record.directory, process.exec_id), process.record)

    def save_change(self, container: Container, process: Process, **changes: Any) -> None:
        """Write into the record what must not fail for want of space: what has happened has happened."""
        try:
            if process.exec_id:
                self.save_exec(container, process, **changes)
            else:
                self.save(container, **changes)
        except OSError as error:
            ids = {"sandbox_id": self.sandbox_id, "container_id": container.id}
            log.error("container.record_not_written", **ids, error=error)

    def adopt(
        self,
        container: Container,
        process: Process,
        pid: int,
        pidfd: int | None = None,
        start_time: int = 0,
    ) -> None:
        """Watch a process that is running, and let be kept what it needs to outlive this daemon.

        `pidfd` is taken over; the start time tells who it is where it is not our child.
        """
        process.pid = pid
        on_exit = partial(self.on_exit, container, process)
        process.watch = self.parts.exits.watch(pid, on_exit, pidfd, start_time)
        if process.stdio is not None and pidfd is None:
            process.stdio.keep(process.watch.pidfd)

    def is_inside(self, container: Container, pid: int) -> bool:
        """Tell whether a process is one of a container's."""
        return pid in self.pids_of(container)

    def _is_first_process(self, pid: int) -> bool:
        return any(c.init.pid == pid and c.init.exit is None for c in self.containers.values())

    # -- ends (called by the event loop: nothing may be raised to nobody) --------------------------

    def on_exit(self, container: Container, process: Process, status: ExitStatus) -> None:
        is_first = not process.exec_id
        oom_killed = is_first and self._check_memory(container)
        is_behind = process.stdio is not None and process.stdio.is_behind
        if oom_killed or is_behind or (is_first and not container.ends_whole):
            end = self._finish_late(container, process, status, oom_killed)
            asyncio.get_running_loop().create_task(end)
        else:
            self._finish(container, process, status)

    async def _finish_late(
        self, container: Container, process: Process, status: ExitStatus, oom_killed: bool
    ) -> None:
        """Do what must be done before anybody learns of the end."""
        if oom_killed:
            # An engine that learns of the exit first reports a plain error (engine contract section 0.7).
            await self.parts.events.flush(_OOM_EVENT_TIMEOUT_S)
        if not process.exec_id:
            try:
                await self._kill_leftovers(container)
            except (SandboxdError, OSError) as error:
                log.warning("container.leftovers_survived", error=error)
        if process.stdio is not None:
            await process.stdio.pass_on(_OUTPUT_TIMEOUT_S)
        self._finish(container, process, status)

    def _finish(self, container: Container, process: Process, status: ExitStatus) -> None:
        with bound(sandbox_id=self.sandbox_id, container_id=container.id):
            starting = process.state is ProcessState.STARTING
            # On record before anybody is told: the answer must be the same ever after.
            if container.state is ContainerState.READY:
                failpoint(Failpoint.EXEC_EXITED if process.exec_id else Failpoint.CONTAINER_EXITED)
                self.save_change(container, process, exit_code=status.code, exited_at_ns=status.exited_at_ns)
                recorded = Failpoint.EXEC_EXIT_RECORDED
                failpoint(recorded if process.exec_id else Failpoint.CONTAINER_EXIT_RECORDED)
            process.finish(status)
            if not starting:
                self.publish_exit(process, status)
            if not process.exec_id:
                log.info("container.exited", exit_code=status.code, pid=process.pid)

    def publish_exit(self, process: Process, status: ExitStatus) -> None:
        """Tell the engine of an end. Whoever starts a process tells the end that comes meanwhile, after the start."""
        self.parts.events.publish("/tasks/exit", exit_event(process, status))

    async def kill_unknown(self, container_id: str, prepared: PreparedContainer) -> None:
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

    def watch_memory(self, container: Container) -> None:
        """Find the cgroup of a container, whose first process may have ended, and watch its memory."""
        assert container.prepared is not None
        try:
            container.cgroup = self.parts.hierarchies.locate(container.init.pid)
        except NotFound:
            path = container.prepared.cgroups_path
            container.cgroup = self.parts.hierarchies.of_container(path, container.id)
            if container.cgroup is None:
                return
        container.oom_watch = self.parts.ooms.watch(
            container.cgroup, partial(self._on_oom, container), container.oom_kills
        )

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
        if container.state is ContainerState.READY:
            self.save_change(container, container.init, oom_kills=container.oom_kills)
        self.parts.events.publish("/tasks/oom", events.TaskOOM(container_id=container.id))
        log.info("container.oom", sandbox_id=self.sandbox_id, container_id=container.id, kills=kills)
