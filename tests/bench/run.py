"""`make bench`: measure sandboxd and stock shims in one run, compare with what must be reached.

The handlers take turns, so that whatever else the machine does meets them all; only ratios of one run mean
something. The result is a table, and a JSON file under results/.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import census, load
from tests.bench.interpreter import copy_interpreter
from tests.bench.report import Report, add_common_arguments, run_parts
from tests.engine.engine import OURS, STOCK_CRUN, STOCK_RUNC, Engine
from tests.engine.parts import prepare


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work each part does."""

    serial_rounds: int
    burst_rounds: int
    burst_pods: int
    few_pods: int
    many_pods: int
    idle_s: float
    exec_rounds: int


FULL = Sizes(
    serial_rounds=30, burst_rounds=3, burst_pods=50, few_pods=50, many_pods=500, idle_s=30, exec_rounds=60
)
QUICK = Sizes(
    serial_rounds=8, burst_rounds=1, burst_pods=20, few_pods=10, many_pods=60, idle_s=5, exec_rounds=15
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The handlers that take part, how much they do, and where the findings go."""

    handlers: tuple[str, ...]
    sizes: Sizes
    report: Report

    @property
    def stock(self) -> tuple[str, ...]:
        return tuple(handler for handler in self.handlers if handler != OURS)

    def engine(self, *, supervise: bool = False) -> Engine:
        """A fresh engine, with our daemon on an interpreter of its own if our handler takes part."""
        engine = Engine()
        try:
            engine.start()
            if OURS in self.handlers:
                python = copy_interpreter(engine.directory / "python")
                engine.start_sandboxer(python=python, supervise=supervise)
        except BaseException:
            engine.close()
            raise
        return engine

    def serial(self) -> None:
        with self.engine() as engine:
            samples = load.serial(engine, self.handlers, self.sizes.serial_rounds)
        self.report.details["serial_ms"] = {name: part.summary() for name, part in samples.items()}
        total = samples["total"]
        for handler in self.handlers:
            self.report.add(f"serial pod, {handler}", total.median(handler), "ms")
        if OURS in self.handlers:
            for handler, reach in ((STOCK_RUNC, 0.40), (STOCK_CRUN, 0.55)):
                if handler in self.handlers:
                    ratio = total.median(OURS) / total.median(handler)
                    self.report.add(f"serial pod, against stock {handler}", ratio, "x", reach)

    def burst(self) -> None:
        with self.engine() as engine:
            result = load.bursts(engine, self.handlers, self.sizes.burst_rounds, self.sizes.burst_pods)
        parts = {
            "wall": result.wall_s,
            "machine CPU": result.machine_cpu_s,
            "engine CPU": result.engine_cpu_s,
        }
        self.report.details["burst_s"] = {name: part.summary() for name, part in parts.items()}
        count = self.sizes.burst_pods
        for name, part in parts.items():
            for handler in self.handlers:
                self.report.add(f"{count} pods at once, {name}, {handler}", part.median(handler), "s")
        if OURS in self.handlers and STOCK_RUNC in self.handlers:
            for name, reach in (("wall", 0.28), ("machine CPU", 0.26), ("engine CPU", None)):
                ratio = parts[name].median(OURS) / parts[name].median(STOCK_RUNC)
                self.report.add(f"{count} pods at once, {name}, against stock runc", ratio, "x", reach)

    def exec(self) -> None:
        with self.engine() as engine:
            samples = load.execs(engine, self.handlers, self.sizes.exec_rounds)
        self.report.details["exec_ms"] = samples.summary()
        for handler in self.handlers:
            self.report.add(f"ExecSync true, {handler}", samples.median(handler), "ms")
        if OURS in self.handlers and STOCK_RUNC in self.handlers:
            ratio = samples.median(OURS) / samples.median(STOCK_RUNC)
            self.report.add("ExecSync true, against stock runc", ratio, "x", 0.5)

    def memory(self) -> None:
        """Stock at few pods, for the comparison."""
        for handler in self.stock:
            with self.engine() as engine:
                present, over_pods = 0, []
                for count in (1, self.sizes.few_pods // 2, self.sizes.few_pods):
                    load.start_pods(engine, handler, count - present, 4)
                    present = count
                    usage = census.management(engine, stock=True)
                    over_pods.append((present, usage.pss_kib))
                idle_s = self._idle_cpu_s(engine, stock=True)
            self.report.details[f"memory_{handler}"] = asdict(usage)
            self._memory_over_pods(handler, over_pods)
            where = f"{self.sizes.few_pods} pods, stock {handler}"
            self.report.add(f"management PSS, {where}", usage.pss_kib / 1024, "MiB")
            self.report.add(f"threads, {where}", usage.threads, "")
            self.report.add(f"idle CPU in {self.sizes.idle_s:g} s, {where}", idle_s, "s")

    def density(self) -> None:
        """Ours at few and at many pods: memory, threads, mounts, idling, and whether a start gets slower."""
        if OURS not in self.handlers:
            return
        few, many, rounds = self.sizes.few_pods, self.sizes.many_pods, self.sizes.serial_rounds
        with self.engine() as engine:
            empty = census.management(engine, stock=False)
            load.start_pod(engine, OURS)
            load.settle()
            at_one = census.management(engine, stock=False)
            with_one = load.serial(engine, [OURS], rounds)
            present = load.start_pods(engine, OURS, few - 1, few)
            time.sleep(2)
            at_few, mounts_at_few = census.management(engine, stock=False), census.mounts(engine)
            idle_s = self._idle_cpu_s(engine, stock=False)
            present += load.start_pods(engine, OURS, many - few, 8)
            load.settle()
            at_many, mounts_at_many = census.management(engine, stock=False), census.mounts(engine)
            with_many = load.serial(engine, [OURS], rounds)
            after = census.management(engine, stock=False)
            load.remove_pods(engine, present)
            load.settle()
            # Minutes lie between the two: how much the machine itself changes meanwhile, the mean takes half of.
            with_one_again = load.serial(engine, [OURS], rounds)
        self.report.details["density"] = {
            "empty": asdict(empty),
            "few": asdict(at_few),
            "many": asdict(at_many),
            "after": asdict(after),
            "serial_ms": {
                "with_one": {name: part.summary() for name, part in with_one.items()},
                "with_many": {name: part.summary() for name, part in with_many.items()},
                "with_one_again": {name: part.summary() for name, part in with_one_again.items()},
            },
            "mounts": {"few": mounts_at_few, "many": mounts_at_many},
        }
        usages = {1: at_one, few: at_few, many: at_many}
        self._memory_over_pods(OURS, [(count, usage.pss_kib) for count, usage in usages.items()])
        ones_ms = [part["total"].median(OURS) for part in (with_one, with_one_again)]
        slowdown = with_many["total"].median(OURS) / statistics.fmean(ones_ms)
        growth_kib = (at_many.pss_kib - at_few.pss_kib) / (many - few)
        report = self.report
        report.add("management PSS, no pod", empty.pss_kib / 1024, "MiB")
        report.add(f"management PSS, {few} pods", at_few.pss_kib / 1024, "MiB", 38)
        report.add(f"growth per pod, {few} to {many} pods", growth_kib, "KiB", 32)
        report.add(f"threads, {many} pods", at_many.threads, "", 16)
        report.add(
            f"idle CPU in {self.sizes.idle_s:g} s, {few} pods", idle_s, "s", 0.02 * self.sizes.idle_s / 30
        )
        report.add(f"serial pod, {many} pods present against 1", slowdown, "x", 1.3)
        report.add("mounts per pod", (mounts_at_many - mounts_at_few) / (many - few), "", 5)

    def outlasting(self) -> None:
        """What it costs that a daemon's death is not noticed: without somebody who keeps descriptors, and with."""
        if OURS not in self.handlers:
            return
        few = self.sizes.few_pods
        memory_mib, cpu_ns = {}, {False: 0, True: 0}
        with ExitStack() as stack:
            engines = {kept: stack.enter_context(self.engine(supervise=kept)) for kept in (False, True)}
            for supervised, engine in engines.items():
                load.serial(engine, [OURS], 3)
                load.settle()
                memory_mib[supervised] = census.management(engine, stock=False).pss_kib / 1024
            for _ in range(few):
                for supervised, engine in engines.items():
                    before_ns = census.management(engine, stock=False).cpu_ns
                    load.start_pod(engine, OURS)
                    cpu_ns[supervised] += census.management(engine, stock=False).cpu_ns - before_ns
        cpu_ms = {supervised: ns / few / 1e6 for supervised, ns in cpu_ns.items()}
        for supervised, name in ((False, "alone"), (True, "supervised")):
            self.report.add(f"daemon CPU per pod start, {name}", cpu_ms[supervised], "ms")
            self.report.add(f"management PSS after a few pods, {name}", memory_mib[supervised], "MiB")
        self.report.add(
            "daemon CPU per pod start, more for a supervisor", cpu_ms[True] - cpu_ms[False], "ms", 2
        )
        more_mib = memory_mib[True] - memory_mib[False]
        self.report.add("management PSS, more for a supervisor", more_mib, "MiB", 8)

    def _memory_over_pods(self, handler: str, points: list[tuple[int, int]]) -> None:
        """Keep, for a plot, how much memory manages how many pods, in KiB."""
        self.report.details.setdefault("memory_over_pods_kib", {})[handler] = points

    def _idle_cpu_s(self, engine: Engine, *, stock: bool) -> float:
        before_ns = census.management(engine, stock=stock).cpu_ns
        time.sleep(self.sizes.idle_s)
        return (census.management(engine, stock=stock).cpu_ns - before_ns) / 1e9


PARTS: dict[str, Callable[[Bench], None]] = {
    "serial": Bench.serial,
    "exec": Bench.exec,
    "burst": Bench.burst,
    "memory": Bench.memory,
    "density": Bench.density,
    "outlasting": Bench.outlasting,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure sandboxd against stock shims.")
    add_common_arguments(parser, PARTS)
    parser.add_argument("--handlers", metavar="NAME,...", default=f"{STOCK_RUNC},{STOCK_CRUN},{OURS}")
    arguments = parser.parse_args()
    prepare("test", ["fetch-engine"], ["fetch-runtimes"], ["build-images"])
    handlers, sizes = tuple(arguments.handlers.split(",")), QUICK if arguments.quick else FULL

    def run(part: Callable[[Bench], None]) -> Callable[[Report], None]:
        return lambda report: part(Bench(handlers, sizes, report))

    return run_parts(parser, arguments, {name: run(part) for name, part in PARTS.items()}, "bench")


if __name__ == "__main__":
    sys.exit(main())
