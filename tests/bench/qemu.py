"""`make bench-qemu`: what a pod in a virtual machine costs, against what its parts cost alone; with both guest kernels.

What is compared takes turns; only ratios of one run mean something. `make bench-qemu-kvm` runs the same in a node with
KVM (tests/bench/kvm.py).
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import DeadlineExceeded
from common.operations import Action
from common.process.exits import ExitWatcher
from common.transport import transport_of
from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from sandboxers.start_log import read_starts
from sandboxers.vm.boot import image_boot
from sandboxers.vm.share import SHARE_TAG
from tests.bench import census, load
from tests.bench.interpreter import copy_interpreter
from tests.bench.relay import VOLUME_BYTES, ways_to
from tests.bench.report import Report, add_common_arguments, run_parts
from tests.engine.cri import Cri, container_config, matching, pod_config
from tests.engine.engine import OURS_IN_QEMU, Engine
from tests.engine.handlers import QEMU
from tests.engine.namespaces import wait_until
from tests.engine.parts import prepare
from tests.engine.qemu import ACCELERATOR, information, start_vm_container, write_config
from tests.engine.test_pods import shell
from tests.guest_image import guest_image
from tests.node import BOOTS
from tests.vm.qemu import PROGRAMS
from vmm.guest.reception import Announcement, GuestEvent, Reception
from vmm.hypervisors.hypervisor import GuestExit
from vmm.hypervisors.machine import Place, Vsock
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.image.manifest import GuestImage
from vmm.image.manifest import load as load_image
from vmm.protocol import share_path

MEMORY_MIB = 512  # as the configuration's default
ANNOUNCEMENT_LIMIT_S = 150.0
TYPED_LIMIT_S = 120.0
MIB = 1 << 20

# The kernels that an image can have (vmm.image build --kernel), and how long a bare boot with each may take.
KERNELS = {"cloud": 4.5, "monolithic": 3.0}
TYPED = Path(__file__).with_name("typed_in_guest.py")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work each part does."""

    boots: int
    containers: int
    states: int
    volumes: int
    few_pods: int
    many_pods: int


FULL = Sizes(boots=9, containers=9, states=200, volumes=3, few_pods=2, many_pods=10)
QUICK = Sizes(boots=3, containers=3, states=50, volumes=3, few_pods=1, many_pods=3)


@dataclass(frozen=True, slots=True)
class Bench:
    """Pods with one guest kernel: the image, how much to do, and where the findings go."""

    kernel: str
    image: GuestImage
    sizes: Sizes
    report: Report

    def boot(self) -> None:
        """Start of a pod against the boot of a machine that has nothing but a vsock."""
        alone, pods, agents, interpreters = [], [], [], []
        with self._engine() as engine:
            with self._privileged_pod(engine) as (pod_id, pod), Typist(engine, pod_id, pod) as typist:
                interpreters += [typist.typed().python_s for _ in range(self.sizes.containers)]
            for _ in range(self.sizes.boots):
                took_s, announcement = asyncio.run(self._boot_alone(engine))
                alone.append(took_s)
                agents.append((announcement.ready_ns - announcement.exec_ns) / 1e9)
                pod_id = engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU)
                pods.append(_started_s(engine, pod_id))
                _remove(engine.cri, pod_id)
        alone_s, pod_s = statistics.median(alone), statistics.median(pods)
        python_s = statistics.median(interpreters) + statistics.median(agents)
        self._add("bare boot until the announcement", alone_s, "s", KERNELS[self.kernel])
        self._add("of it, Python: interpreter and agent", python_s / alone_s, "", 0.4)
        self._add("Start of a pod (no CNI)", pod_s, "s")
        self._add("Start of a pod, against the bare boot", pod_s / alone_s, "x", 1.15)

    def containers(self) -> None:
        """Create and start of a container, all of the engine's included, against crun's in the same guest."""
        whole, calls, typed = [], [], []
        with (
            self._engine() as engine,
            self._privileged_pod(engine) as (pod_id, pod),
            Typist(engine, pod_id, pod) as typist,
        ):
            for number in range(self.sizes.containers):
                began = time.perf_counter()
                container = engine.cri.create(pod_id, container_config(name=f"c{number}"), pod)
                engine.cri.start(container)
                whole.append(time.perf_counter() - began)
                calls.append(_task_calls_s(engine, container))
                typed.append(typist.typed(container).crun_s)
                engine.cri.stop_container(container)
                engine.cri.remove_container(container)
        whole_s, calls_s, typed_s = map(statistics.median, (whole, calls, typed))
        self._add("create and start of a container (CRI)", whole_s * 1e3, "ms")
        self._add("of it, Task.Create and Task.Start of the sandboxer", calls_s * 1e3, "ms")
        self._add("of it, the rest: the engine's", (whole_s - calls_s) * 1e3, "ms")
        self._add("crun create and start, in the guest", typed_s * 1e3, "ms")
        self._add("Task.Create and Task.Start, against crun's", calls_s / typed_s, "x", 1.5)
        self._add("create and start (CRI), against crun's", whole_s / typed_s, "x", 1.5)

    def relay(self) -> None:
        """State and output of a container, through the relay and without it."""
        with self._engine() as engine:
            pod_id, container = start_vm_container(engine.cri)
            asyncio.run(self._relay(engine, pod_id, container))
            _remove(engine.cri, pod_id)

    async def _relay(self, engine: Engine, pod_id: str, container: str) -> None:
        fifo, stream, cpu = [], [], []
        async with ways_to(engine, pod_id, container) as ways:
            state_s, states_s = await ways.state_s(self.sizes.states)
            relayed_s, direct_s = await ways.handed_on_s(self.sizes.states)
            for _ in range(self.sizes.volumes):
                before_ns = census.cpu_ns(engine.daemon_pid)
                fifo.append(await ways.into_fifo_s())
                cpu.append((census.cpu_ns(engine.daemon_pid) - before_ns) / 1e9)
                stream.append(await ways.through_stream_s())
        fifo_s, stream_s = statistics.median(fifo), statistics.median(stream)
        self._add("State of the relay, which knows it", state_s * 1e6, "us")
        self._add("State, against the agent alone", state_s / states_s, "x", 1.3)
        self._add("a call that the relay hands on", relayed_s * 1e6, "us")
        self._add("a call handed on, against the agent alone", relayed_s / direct_s, "x", 1.3)
        self._add("output into the FIFO", VOLUME_BYTES / MIB / fifo_s, "MiB/s")
        # At least 0.8 of its throughput.
        self._add("time for output, against the raw stream", fifo_s / stream_s, "x", 1.25)
        self._add("sandboxer's CPU per 100 MiB of output", statistics.median(cpu), "s")

    def memory(self) -> None:
        """What the sandboxer, the processes beside it and the guest need for a pod with a sleeping container."""
        few, many = self.sizes.few_pods, self.sizes.many_pods
        with self._engine() as engine:
            for _ in range(few):
                _remove(engine.cri, start_vm_container(engine.cri)[0])
            pods = [start_vm_container(engine.cri) for _ in range(few)]
            load.settle()
            at_few_kib = census.pss_kib(engine.daemon_pid)
            pods += [start_vm_container(engine.cri) for _ in range(many - few)]
            load.settle()
            at_many_kib = census.pss_kib(engine.daemon_pid)
            self._add("sandboxer's PSS, no more than a few pods", at_few_kib / 1024, "MiB")
            self._add(
                f"sandboxer's PSS per pod, {few} to {many}",
                (at_many_kib - at_few_kib) / (many - few),
                "KiB",
                64,
            )
            pod_id, container = pods[0]
            memory = census.machine_memory(engine, information(engine.cri, pod_id)["machine"])
            self._add("virtiofsd and vsock daemon of a pod", memory.helpers_kib / 1024, "MiB", 8)
            self._add("QEMU of a pod, with the guest's memory", memory.qemu_kib / 1024, "MiB")
            self._add("QEMU of a pod, without it", (memory.qemu_kib - memory.guest_kib) / 1024, "MiB")
            free = shell(engine.cri, container, "free -k").splitlines()[1].split()
            used_mib = (int(free[1]) - int(free[6])) / 1024
            self._add("guest memory in use, one sleeping container", used_mib, "MiB", 64)
            for pod_id, _ in pods:
                _remove(engine.cri, pod_id)

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        """A fresh engine with the sandboxer on an interpreter of its own."""
        changes: dict[str, dict[str, object]] = {
            "log": {"format": "json"},
            "guest": {"image": str(self.image.directory / f"{self.image.manifest.name}.json")},
            "size": {"memory_mib": MEMORY_MIB},
        }
        # The host's OCI runtime has nothing to do here.
        with Engine(runtimes="system") as engine:
            engine.start()
            python = copy_interpreter(engine.directory / "python")
            engine.start_sandboxer(write_config(engine.directory, changes), python=python)
            try:
                yield engine
            except Exception:
                print(engine.evidence(), file=sys.stderr, flush=True)
                raise

    @contextmanager
    def _privileged_pod(self, engine: Engine) -> Iterator[tuple[str, api.PodSandboxConfig]]:
        pod = pod_config(host_network=False)
        pod.linux.security_context.privileged = True
        pod_id = engine.cri.run_pod(pod, OURS_IN_QEMU)
        yield pod_id, pod
        _remove(engine.cri, pod_id)

    async def _boot_alone(self, engine: Engine) -> tuple[float, Announcement]:
        """Boot the image with nothing but a vsock; return the seconds until its announcement, and that."""
        for left in reversed(range(BOOTS)):
            try:
                booted = await self._boot_once(engine)
                break
            except DeadlineExceeded as error:
                if not left:
                    raise
                print(f"booted again: {error}", file=sys.stderr, flush=True)
        return booted

    async def _boot_once(self, engine: Engine) -> tuple[float, Announcement]:
        watcher = ExitWatcher()
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            settings = QemuSettings(directory, ACCELERATOR, PROGRAMS)
            # Beside those of pods, so that both get the same share of a busy machine.
            cgroups = tuple(map(str, engine.namespaces.process_cgroups))
            virtual = Qemu(settings, watcher).machine(Place(directory, cgroups=cgroups))
            try:
                with Reception(transport_of(virtual.vsock), _ignore) as reception:
                    began = time.monotonic()
                    await virtual.start(image_boot(self.image), [Vsock()], _forget)
                    announcement = await reception.announcement(ANNOUNCEMENT_LIMIT_S)
                    took_s = time.monotonic() - began
            finally:
                await virtual.stop(0)
                watcher.close()
        return took_s, announcement

    def _add(self, figure: str, value: float, unit: str, reach: float | None = None) -> None:
        self.report.add(f"{self.kernel}: {figure}", value, unit, reach)


class Typed(NamedTuple):
    """How long commands took that a guest ran by itself: an interpreter's start and end; crun create and start."""

    python_s: float
    crun_s: float


class Typist:
    """Lets a guest run commands outside of its containers, through a container that may do everything (core(5))."""

    def __init__(self, engine: Engine, pod_id: str, pod: api.PodSandboxConfig) -> None:
        """:param pod: the configuration of the pod, which is privileged."""
        self._cri = engine.cri
        self._volume = Path(tempfile.mkdtemp(prefix="bench-"))
        program = Path(shutil.copy(TYPED, self._volume / "typed"))
        program.chmod(0o755)
        mount = pb.Mount(container_path="/volume", host_path=str(self._volume))
        config = container_config(name="typist", linux=matching(pod, privileged=True), mounts=[mount])
        self._container = self._cri.create(pod_id, config, pod)
        self._cri.start(self._container)
        share = engine.namespaces.root / QEMU.state_dir / pod_id / "share"
        place = next(share.glob(f"{self._container}/mounts/*/{program.name}")).relative_to(share)
        self._path = f"{share_path(SHARE_TAG)}/{place}"

    def typed(self, container: str = "") -> Typed:
        """Run the commands once, crun with the bundle of this container, or else of the typist's own."""
        (self._volume / "container").write_text(container or self._container)
        answer = self._volume / "took"
        script = f"echo '|{self._path}' >/proc/sys/kernel/core_pattern; sh -c 'kill -SEGV $$'"
        self._cri.exec(self._container, ["sh", "-c", script])
        wait_until(answer.exists, TYPED_LIMIT_S, "the guest's commands")
        took = json.loads(answer.read_text())
        answer.unlink()
        if "error" in took:
            raise RuntimeError(f"in the guest: {took['error']}")
        return Typed(**took)

    def __enter__(self) -> "Typist":
        return self

    def __exit__(self, *_: object) -> None:
        self._cri.stop_container(self._container)
        self._cri.remove_container(self._container)
        shutil.rmtree(self._volume)


def _remove(cri: Cri, pod_id: str) -> None:
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)


def _task_calls_s(engine: Engine, container: str) -> float:
    """How long the sandboxer took for Create and Start of a container, by its own log."""
    took_us = {
        start["action"]: start["age_us"]
        for start in read_starts(str(engine.namespaces.root / QEMU.state_dir))
        if start["container_id"] == container
    }
    return float(took_us[Action.CONTAINER_CREATE] + took_us[Action.CONTAINER_START]) / 1e6


def _started_s(engine: Engine, pod_id: str) -> float:
    """How long the sandboxer took for Start, in which there is no CNI, by its own log."""
    for line in (engine.logs / "sandboxer.log").read_text().splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "sandbox.started" and event.get("sandbox_id") == pod_id:
                return float(event["took_ms"]) / 1000
    raise LookupError(pod_id)


async def _ignore(_: GuestEvent) -> None:
    pass


def _forget(_: GuestExit) -> None:
    pass


PARTS: dict[str, Callable[[Bench], None]] = {
    "boot": Bench.boot,
    "containers": Bench.containers,
    "relay": Bench.relay,
    "memory": Bench.memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure pods in virtual machines.")
    add_common_arguments(parser, PARTS)
    parser.add_argument("--kernels", metavar="NAME,...", default=",".join(KERNELS))
    arguments = parser.parse_args()
    kernels = arguments.kernels.split(",")
    prepare("test", ["fetch-engine"], ["build-images"])
    prepare("guest-kernel", ["fetch-vm-helpers"])
    images = {kernel: load_image(guest_image("--kernel", kernel)) for kernel in kernels}
    sizes = QUICK if arguments.quick else FULL

    def run(part: Callable[[Bench], None]) -> Callable[[Report], None]:
        def with_each_kernel(report: Report) -> None:
            for kernel in kernels:
                part(Bench(kernel, images[kernel], sizes, report))

        return with_each_kernel

    return run_parts(parser, arguments, {name: run(part) for name, part in PARTS.items()}, "bench-qemu")


if __name__ == "__main__":
    sys.exit(main())
