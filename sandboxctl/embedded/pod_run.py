"""One pod of `sandboxctl run`, from its plan to its end, or until it runs by itself."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import FailedPrecondition, SandboxdError
from common.process.exits import ExitWatcher
from sandboxctl.daemons import Daemon
from sandboxctl.embedded.cni import addresses_of
from sandboxctl.embedded.engine import EmbeddedEngine, MakeStreams, RunningContainer, remove_abandoned
from sandboxctl.embedded.foreground import attend, make_foreground_streams
from sandboxctl.embedded.image_store import Image, ImageStore
from sandboxctl.embedded.interruption import Interruption
from sandboxctl.embedded.plan import ContainerPlan, PodPlan
from sandboxctl.embedded.private_daemon import ensure_daemon, release_daemon
from sandboxctl.embedded.records import PodRecord, locked, sweep_data
from sandboxctl.embedded.streams import CopiedStreams, FileStreams, Streams
from sandboxctl.output import print_json
from sandboxctl.tasks import Tasks, tasks_of
from sandboxers.isolation import IsolationType


@dataclass(frozen=True, slots=True)
class PodRun:
    """What is to be run, and how. `configured` is the node's own daemon of the type, if there is one. What is detached
    runs on, and its id is printed; else its end is waited for, and it is removed then where that is wanted."""

    plan: PodPlan
    type: IsolationType
    configured: Daemon | None
    is_detached: bool
    is_removed: bool
    as_json: bool

    def run(self) -> int:
        """Do it, and return the exit code.

        :raise SandboxdError, OSError: it could not be run; nothing of it is left, or the error says what.
        """
        return asyncio.run(self._run())

    async def _run(self) -> int:
        watcher = ExitWatcher()
        with Interruption() as interruption:
            try:
                return await self._run_pod(watcher, interruption)
            except asyncio.CancelledError:
                return 128 + interruption.signum
            finally:
                watcher.close()

    async def _run_pod(self, watcher: ExitWatcher, interruption: Interruption) -> int:
        store = ImageStore(watcher, blocking=interruption.at_once)
        is_foreign = self.type is IsolationType.WASM
        images = {c.image: await store.get(c.image, foreign=is_foreign) for c in self.plan.all_containers}
        await remove_abandoned(watcher)
        engine, record = await self._register(images, watcher)
        try:
            record = await engine.start_pod(self.plan, record)
            async with tasks_of(engine.pod(record)) as tasks:
                pod = _StartedPod(self.plan, record, images, engine, tasks)
                if self.is_detached:
                    await self._start_detached(pod, watcher, interruption)
                    self._tell(record)
                    return 0
                code = await _run_in_foreground(pod, interruption)
            if not self.is_removed:
                await engine.stop(record)
        except BaseException as error:
            interruption.ignore()
            try:
                await engine.remove(record)
            except (SandboxdError, OSError) as failure:
                raise FailedPrecondition(
                    f"{error}; what is left of it cannot be removed: {failure}"
                ) from error
            raise
        if self.is_removed:
            await engine.remove(record)
        return code

    async def _register(
        self, images: dict[str, Image], watcher: ExitWatcher
    ) -> tuple[EmbeddedEngine, PodRecord]:
        """Find or start a daemon and write the pod down; without a pod no daemon is left running for it."""
        async with locked():
            sweep_data()
            if self.configured is not None and self.configured.is_running():
                daemon = self.configured
            else:
                daemon = await ensure_daemon(self.type.value, self.configured, watcher)
            engine = EmbeddedEngine(daemon, watcher)
            try:
                return engine, engine.register(self.plan, images)
            except BaseException:
                release_daemon(daemon)
                raise

    async def _start_detached(
        self, pod: _StartedPod, watcher: ExitWatcher, interruption: Interruption
    ) -> None:
        def make_streams(record: PodRecord, container: ContainerPlan, directory: str) -> Streams:
            log_file = record.log_file(container.name)
            # What runs in a guest cannot write to a file of this machine.
            if self.type is IsolationType.QEMU:
                return CopiedStreams(directory, log_file, watcher)
            return FileStreams(log_file)

        await pod.run_init_containers(make_streams, interruption)
        for container in pod.plan.containers:
            (await pod.start(container, make_streams)).streams.close()
        pod.record.settle()

    def _tell(self, record: PodRecord) -> None:
        if self.as_json:
            addresses = list(addresses_of(record.attachment).addresses)
            print_json(
                {"id": record.pod_id, "name": record.name, "type": record.type, "addresses": addresses}
            )
        else:
            print(record.pod_id)


class _StartedPod(NamedTuple):
    """A pod whose containers are to be started."""

    plan: PodPlan
    record: PodRecord
    images: dict[str, Image]
    engine: EmbeddedEngine
    tasks: Tasks

    async def start(self, container: ContainerPlan, make_streams: MakeStreams) -> RunningContainer:
        """Start one of its containers."""
        image = self.images[container.image]
        return await self.engine.start_container(
            self.tasks, self.plan, container, self.record, image, make_streams
        )

    async def run_init_containers(self, make_streams: MakeStreams, interruption: Interruption) -> None:
        """Run them one after the other. Raises FailedPrecondition for one that fails, or that a signal has ended."""
        for container in self.plan.init_containers:
            interruption.postpone()
            running = [await self.start(container, make_streams)]
            code = await attend(self.tasks, running, self.plan.stop_timeout_s, interruption)
            if code:
                raise FailedPrecondition(
                    f"the init container {container.name} has failed with exit code {code}, so the pod was not"
                    " started"
                )
            if interruption.was_asked:
                raise FailedPrecondition(
                    f"interrupted while the init container {container.name} ran, so the pod was not started"
                )


async def _run_in_foreground(pod: _StartedPod, interruption: Interruption) -> int:
    is_labelled = len(pod.plan.all_containers) > 1

    def make_streams(record: PodRecord, container: ContainerPlan, directory: str) -> Streams:
        return make_foreground_streams(record, container, directory, container.name if is_labelled else "")

    await pod.run_init_containers(make_streams, interruption)
    interruption.postpone()
    with ExitStack() as undo:
        running = []
        for container in pod.plan.containers:
            running.append(await pod.start(container, make_streams))
            undo.callback(running[-1].streams.close)
        pod.record.settle()
        return await attend(pod.tasks, running, pod.plan.stop_timeout_s, interruption)
