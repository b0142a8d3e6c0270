"""Count what runs in an engine's namespaces: processes, their memory, threads and CPU time, and mounts."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.linux.fd_holder import NAME as FD_HOLDER
from tests.engine.engine import Engine

SHIM = "containerd-shim-runc-v2"
# The engine itself and what holds or enters its namespaces: no part of either contestant.
# How the memory of a guest is called in the map of its QEMU.
GUEST_MEMORY = "/memfd:memory-backend"
BYSTANDERS = frozenset({"containerd", "catatonit", "nsenter", "dash", "sh"})


@dataclass(frozen=True, slots=True)
class Usage:
    """A group of processes at one moment."""

    processes: int
    threads: int
    pss_kib: int
    rss_kib: int
    cpu_ns: int


def management(engine: Engine, *, stock: bool) -> Usage:
    """What manages pods: the shims (`stock`), or else everything that is neither shim, engine nor container.

    Counting "everything else" as ours means that no helper can be forgotten. A container's process is told
    by its root directory.
    """
    processes = threads = pss_kib = rss_kib = cpu_ns = 0
    for process in _processes(engine.namespaces.root):
        try:
            name = process.joinpath("exe").readlink().name
            if name in BYSTANDERS or (name == SHIM) != stock:
                continue
            memory = _fields(process / "smaps_rollup")
            threads += int(_fields(process / "status")["Threads"])
            cpu_ns += _cpu_ns(process)
            pss_kib += int(memory["Pss"].split()[0])
            rss_kib += int(memory["Rss"].split()[0])
            processes += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Usage(processes, threads, pss_kib, rss_kib, cpu_ns)


def module_processes_pss_kib(engine: Engine) -> list[int]:
    """The memory of each process that runs a module, and of the one that they are forked from.

    That is everything but the engine, those who hold or enter its namespaces, and the daemon with what holds its
    descriptors.
    """
    found = []
    for process in (engine.namespaces.root / "proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if process.joinpath("exe").readlink().name in BYSTANDERS or _is(process, engine.daemon_pid):
                continue
            if (process / "comm").read_text().strip() == FD_HOLDER:
                continue
            found.append(_pss_kib(process))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def pss_kib(pid: int) -> int:
    """The proportional memory of a process, by its pid as seen from here."""
    return _pss_kib(Path(f"/proc/{pid}"))


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, by its pid as seen from here."""
    return _cpu_ns(Path(f"/proc/{pid}"))


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The proportional memory of a virtual machine: its QEMU, the guest's part of that, the processes beside it."""

    qemu_kib: int
    guest_kib: int
    helpers_kib: int


def machine_memory(engine: Engine, pids: Mapping[str, int]) -> MachineMemory:
    """Measure a machine by the pids of its processes as the sandboxer tells them, `qemu` and others."""
    proc = engine.namespaces.root / "proc"
    qemu_kib = guest_kib = 0
    is_guests = False
    for line in (proc / str(pids["qemu"]) / "smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            is_guests = GUEST_MEMORY in line
        elif first == "Pss:":
            size_kib = int(line.split()[1])
            qemu_kib += size_kib
            guest_kib += size_kib if is_guests else 0
    helpers = [pid for role, pid in pids.items() if role != "qemu"]
    # virtiofsd works in a child that it has put into a sandbox.
    helpers += [
        int(child) for pid in helpers for child in (proc / f"{pid}/task/{pid}/children").read_text().split()
    ]
    return MachineMemory(qemu_kib, guest_kib, sum(_pss_kib(proc / str(pid)) for pid in helpers))


def _is(process: Path, pid: int) -> bool:
    """Whether a directory in the procfs of the engine is that of a process seen from here."""
    inner = _fields(Path(f"/proc/{pid}/status"))["NSpid"].split()[-1]
    return process.name == inner


def mounts(engine: Engine) -> int:
    """How many mounts the engine and the sandboxer see."""
    return len(Path(f"/proc/{engine.namespaces.first_pid}/mountinfo").read_text().splitlines())


def machine_cpu_s() -> float:
    """CPU time that the whole machine has spent, without idling and without time stolen from it."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def engine_cpu_s(engine: Engine) -> float:
    """CPU time of everything that ever ran in the engine's cgroup; blind to the rest of the machine."""
    for cgroup in engine.namespaces.cgroups:
        if (cgroup / "cpuacct.usage").exists():
            return int((cgroup / "cpuacct.usage").read_text()) / 1e9
        if (cgroup / "cpu.stat").exists() and "usage_usec" in (cgroup / "cpu.stat").read_text():
            return int((cgroup / "cpu.stat").read_text().split()[1]) / 1e6
    return float("nan")


def _processes(root: Path) -> Iterator[Path]:
    """The processes whose root directory is the engine's."""
    here = os.stat(f"{root}/.")
    for process in (root / "proc").iterdir():
        if not process.name.isdigit() or process.name == "1":
            continue
        try:
            there = os.stat(process / "root/.")
        except OSError:
            continue
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
            yield process


def _pss_kib(process: Path) -> int:
    return int(_fields(process / "smaps_rollup")["Pss"].split()[0])


def _cpu_ns(process: Path) -> int:
    return sum(int(task.read_text().split()[0]) for task in process.glob("task/*/schedstat"))


def _fields(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
