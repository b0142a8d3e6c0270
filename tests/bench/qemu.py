"""`make bench-qemu`: what a pod in a virtual machine costs, against what its parts cost alone. In one run, in turns."""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from google.protobuf.empty_pb2 import Empty

from common.process.exits import ExitWatcher
from common.transport import transport_of
from common.ttrpc import Client
from proto.gen.containerd.task.v3 import shim_pb2 as api
from sandboxers.vm.sandbox import image_boot
from tests.bench.interpreter import copy_interpreter
from tests.bench.report import RESULTS, Report, machine, table
from tests.engine.cri import container_config, pod_config
from tests.engine.engine import OURS_IN_QEMU, Engine
from tests.engine.parts import prepare
from tests.engine.qemu import HELPERS, information, start_vm_container, write_config
from tests.engine.test_pods import shell
from tests.guest_image import guest_image
from vmm.guest.reception import Announcement, GuestEvent, Reception
from vmm.hypervisors.hypervisor import Accelerator, GuestExit
from vmm.hypervisors.machine import Place, Vsock
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs
from vmm.image.manifest import GuestImage, load
from vmm.protocol import TASK_SERVICE, stream_uri

MEMORY_MIB = 512  # as the configuration's default
VOLUME_BYTES = 100 << 20
WRITE = f"dd if=/dev/zero bs=32k count={VOLUME_BYTES >> 15} 2>/dev/null"
TIMEOUT_S = 120.0
SETTLE_S = 20.0


# -- a machine alone -----------------------------------------------------------------------------------


async def boot_alone(image: GuestImage, accelerator: Accelerator) -> tuple[float, Announcement]:
    """Boot the image with nothing but a vsock; return the seconds until its announcement, and that."""
    watcher = ExitWatcher()
    programs = Programs(
        virtiofsd=str(HELPERS / "virtiofsd"), vsock_daemon=str(HELPERS / "vhost-device-vsock")
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        virtual = Qemu(QemuSettings(directory, accelerator, programs), watcher).machine(Place(directory))

        async def ignore(_: GuestEvent) -> None:
            pass

        with Reception(transport_of(virtual.vsock), ignore) as reception:
            began = time.monotonic()
            await virtual.start(image_boot(image), [Vsock()], _forget)
            announcement = await reception.announcement(TIMEOUT_S)
            took_s = time.monotonic() - began
        await virtual.stop(0)
    watcher.close()
    return took_s, announcement


def _forget(_: GuestExit) -> None:
    pass


def started_s(engine: Engine, pod_id: str) -> float:
    """How long the sandboxer took for Start, in which there is no CNI, by its own log."""
    for line in (engine.logs / "sandboxer.log").read_text().splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "sandbox.started" and event.get("sandbox_id") == pod_id:
                return float(event["took_ms"]) / 1000
    raise LookupError(pod_id)


def measure_start(
    engine: Engine, report: Report, image: GuestImage, rounds: int, accelerator: Accelerator
) -> None:
    alone, pods, shares = [], [], []
    for _ in range(rounds):
        took_s, announcement = asyncio.run(boot_alone(image, accelerator))
        alone.append(took_s)
        shares.append((announcement.ready_ns - announcement.exec_ns) / 1e9 / took_s)
        pod_id = engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU)
        pods.append(started_s(engine, pod_id))
        engine.cri.stop_pod(pod_id)
        engine.cri.remove_pod(pod_id)
    limit = 4.5 if image.ramdisk else 3.0
    report.add("bare boot until the announcement", statistics.median(alone), "s", limit)
    report.add("of it, the agent (Python)", statistics.median(shares), "", 0.4)
    report.add("Start of a pod (no CNI)", statistics.median(pods), "s")
    report.add(
        "Start of a pod, against the bare boot", statistics.median(pods) / statistics.median(alone), "x", 1.15
    )


# -- what it costs to be there ---------------------------------------------------------------------------


def pss_kib(pid: int, proc: Path) -> int:
    """The proportional memory of a process."""
    for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise LookupError(pid)


def qemu_pss_kib(pid: int, proc: Path) -> tuple[int, int]:
    """The proportional memory of a QEMU, and how much of it is the guest's."""
    total = guests = 0
    is_guests = False
    for line in (proc / str(pid) / "smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            is_guests = "/memfd:memory-backend" in line
        elif first == "Pss:":
            size = int(line.split()[1])
            total += size
            guests += size if is_guests else 0
    return total, guests


def measure_memory(engine: Engine, report: Report, pods: int) -> None:
    proc = engine.namespaces.root / "proc"
    daemon = engine.daemon_pid
    first, container = start_vm_container(engine.cri)
    # What was freed goes back to the system some seconds later.
    time.sleep(SETTLE_S)
    before = pss_kib(daemon, Path("/proc"))
    more = [start_vm_container(engine.cri)[0] for _ in range(pods)]
    time.sleep(SETTLE_S)
    after = pss_kib(daemon, Path("/proc"))
    report.add("sandboxer's PSS per further pod", (after - before) / pods, "KiB", 64)
    machine_pids = information(engine.cri, first)["machine"]
    helpers = [pid for role, pid in machine_pids.items() if role != "qemu"]
    helpers += [
        int(child)
        for pid in helpers
        for child in (proc / str(pid) / "task" / str(pid) / "children").read_text().split()
    ]
    report.add("virtiofsd and vsock daemon of a pod", sum(pss_kib(p, proc) for p in helpers) / 1024, "MiB", 8)
    total, guests = qemu_pss_kib(machine_pids["qemu"], proc)
    report.add("QEMU of a pod, with the guest's memory", total / 1024, "MiB")
    report.add("QEMU of a pod, without it", (total - guests) / 1024, "MiB")
    free = shell(engine.cri, container, "free -k").splitlines()[1].split()
    report.add("guest memory in use, one sleeping container", (int(free[1]) - int(free[6])) / 1024, "MiB", 64)
    for pod_id in (first, *more):
        engine.cri.stop_pod(pod_id)
        engine.cri.remove_pod(pod_id)


# -- what goes through the relay -------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def median_s(rounds: int, *calls: Callable[[], Awaitable[object]]) -> list[float]:
    """The median times of some calls that take turns."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for times, call in zip(took, calls, strict=True):
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in took]


class Relay:
    """The two ways to one container: through the relay, and straight to the agent."""

    def __init__(self, engine: Engine, pod_id: str, container: str) -> None:
        self.engine, self.container = engine, container
        # Sockets have short names: from inside the directory.
        os.chdir(engine.namespaces.root / "run/sandboxd/qemu" / pod_id)

    async def measure(self, report: Report, rounds: int) -> None:
        async with await Client.connect("task.sock", TIMEOUT_S) as near:
            sock = await self._dial(b"CONNECT 1024\n")
            async with Client(sock) as far:
                state = api.StateRequest(id=self.container)
                relayed, direct = await median_s(
                    rounds,
                    lambda: near.call(TASK_SERVICE, "State", state, api.StateResponse, TIMEOUT_S),
                    lambda: far.call(TASK_SERVICE, "State", state, api.StateResponse, TIMEOUT_S),
                )
                report.add("State through the relay", relayed * 1e6, "us")
                report.add("State, against the agent alone", relayed / direct, "x", 1.3)
                slow, fast, spent = [], [], []
                for number in range(3):
                    before = cpu_s(self.engine.daemon_pid)
                    slow.append(await self._through_fifo(near, f"fifo{number}"))
                    spent.append(cpu_s(self.engine.daemon_pid) - before)
                    fast.append(await self._through_stream(far, f"raw{number}"))
                report.add("output into the FIFO", VOLUME_BYTES / 2**20 / statistics.median(slow), "MiB/s")
                report.add(
                    "output, raw stream against FIFO",
                    statistics.median(slow) / statistics.median(fast),
                    "x",
                    1.25,
                )
                report.add("sandboxer's CPU per 100 MiB of output", statistics.median(spent), "s")

    async def _through_fifo(self, near: Client, exec_id: str) -> float:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/stdout"
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                await near.call(TASK_SERVICE, "Exec", self._exec(exec_id, path), Empty, TIMEOUT_S)
                began = time.perf_counter()
                start = api.StartRequest(id=self.container, exec_id=exec_id)
                await near.call(TASK_SERVICE, "Start", start, api.StartResponse, TIMEOUT_S)
                await asyncio.to_thread(_read_all, reader)
                took_s = time.perf_counter() - began
            finally:
                os.close(reader)
            await self._delete(near, exec_id)
        return took_s

    async def _through_stream(self, far: Client, exec_id: str) -> float:
        sock = await self._dial(b"CONNECT 1026\n")
        sock.send(f"STREAM {exec_id}\n".encode())
        while not (await asyncio.get_running_loop().sock_recv(sock, 64)).startswith(b"OK"):
            pass
        await far.call(TASK_SERVICE, "Exec", self._exec(exec_id, stream_uri(exec_id)), Empty, TIMEOUT_S)
        began = time.perf_counter()
        start = api.StartRequest(id=self.container, exec_id=exec_id)
        await far.call(TASK_SERVICE, "Start", start, api.StartResponse, TIMEOUT_S)
        await asyncio.to_thread(_read_count, sock)
        took_s = time.perf_counter() - began
        sock.close()
        await self._delete(far, exec_id)
        return took_s

    async def _delete(self, client: Client, exec_id: str) -> None:
        wait = api.WaitRequest(id=self.container, exec_id=exec_id)
        await client.call(TASK_SERVICE, "Wait", wait, api.WaitResponse, TIMEOUT_S)
        delete = api.DeleteRequest(id=self.container, exec_id=exec_id)
        await client.call(TASK_SERVICE, "Delete", delete, api.DeleteResponse, TIMEOUT_S)

    async def _dial(self, line: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect("machine/vsock")
        sock.send(line)
        while not (await asyncio.get_running_loop().sock_recv(sock, 64)).startswith(b"OK"):
            pass
        return sock

    def _exec(self, exec_id: str, stdout: str) -> api.ExecProcessRequest:
        process = {
            "args": ["sh", "-c", WRITE],
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "user": {"uid": 0, "gid": 0},
        }
        request = api.ExecProcessRequest(id=self.container, exec_id=exec_id, stdout=stdout)
        request.spec.value = json.dumps(process).encode()
        return request


def _read_all(fd: int) -> None:
    os.set_blocking(fd, True)
    while os.read(fd, 1 << 20):
        pass


def _read_count(sock: socket.socket) -> None:
    sock.setblocking(True)
    left = VOLUME_BYTES
    while left:
        left -= len(sock.recv(1 << 20))


def measure_containers(engine: Engine, report: Report, rounds: int) -> None:
    pod = pod_config(host_network=False)
    pod_id = engine.cri.run_pod(pod, OURS_IN_QEMU)
    took = []
    for number in range(rounds):
        began = time.perf_counter()
        container = engine.cri.create(pod_id, container_config(name=f"c{number}"), pod)
        engine.cri.start(container)
        took.append(time.perf_counter() - began)
    report.add("create and start of a container (CRI)", statistics.median(took) * 1000, "ms")
    asyncio.run(Relay(engine, pod_id, container).measure(report, 200))
    engine.cri.stop_pod(pod_id)
    engine.cri.remove_pod(pod_id)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each kind of start is measured")
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg")
    parser.add_argument("--image", type=Path, help="another guest image than that of this checkout")
    parser.add_argument("--output", type=Path, help="where the JSON goes instead of results/")
    arguments = parser.parse_args()
    prepare("test", ["fetch-engine"], ["fetch-runtimes"], ["build-images"])
    prepare("guest", ["fetch-vm-helpers"])
    image_path = arguments.image or guest_image()
    image = load(image_path)
    report = Report(details={"machine": machine(), "kernel": image.manifest.kernel_release})
    changes = {
        "log": {"format": "json"},
        "qemu": {"accelerator": arguments.accelerator},
        "guest": {"image": str(image_path)},
        "size": {"memory_mib": MEMORY_MIB},
    }
    with Engine() as engine:
        engine.start()
        python = copy_interpreter(engine.directory / "python")
        engine.start_sandboxer(write_config(engine.directory, changes), python=python)
        measure_start(engine, report, image, arguments.rounds, Accelerator(arguments.accelerator))
        measure_containers(engine, report, arguments.rounds)
        os.chdir("/")
        measure_memory(engine, report, 3)
    output = arguments.output or RESULTS / time.strftime("bench-qemu-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(row), "verdict": row.verdict} for row in report.rows]
    output.write_text(json.dumps({"rows": rows, **report.details}, indent=1) + "\n")
    print(table(report.rows))
    print(f"\n{output}")
    return 1 if any(row.verdict == "FAIL" for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
