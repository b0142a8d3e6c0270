"""The work whose cost is measured: pods one after the other, many at once, and commands in a container."""

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import census
from tests.engine.cri import container_config, pod_config
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC

# A removal is not measured, but at full width it would disturb what follows.
REMOVALS_AT_ONCE = 8
_AFTER_REMOVAL_S = 0.1
# The share of busy time below which a machine counts as quiet.
QUIET = 0.08


@dataclass(frozen=True, slots=True)
class Pod:
    """One host-network pod with one sleeping container, and what its three calls took."""

    id: str
    container: str
    run_ms: float
    create_ms: float
    start_ms: float

    @property
    def total_ms(self) -> float:
        return self.run_ms + self.create_ms + self.start_ms


@dataclass(slots=True)
class Samples:
    """Times of one kind of work per handler, in milliseconds."""

    by_handler: dict[str, list[float]] = field(default_factory=dict)

    def add(self, handler: str, value_ms: float) -> None:
        self.by_handler.setdefault(handler, []).append(value_ms)

    def median(self, handler: str) -> float:
        return statistics.median(self.by_handler[handler])

    def summary(self) -> dict[str, dict[str, Any]]:
        """What is kept of them: figures for people, and the values for plots."""
        return {
            handler: {
                "n": len(values),
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "p95": round(sorted(values)[int(len(values) * 0.95)], 3),
                "values": [round(value, 3) for value in values],
            }
            for handler, values in self.by_handler.items()
        }


def start_pod(engine: Engine, handler: str) -> Pod:
    """RunPodSandbox + CreateContainer + StartContainer."""
    cri = engine.cri
    programs = (engine.ours if handler == engine.ours.name else RUNC).programs
    config, container = pod_config(), container_config(programs.sleep, image=programs.image)
    times = [time.perf_counter()]
    pod_id = cri.run_pod(config, handler)
    times.append(time.perf_counter())
    container_id = cri.create(pod_id, container, config)
    times.append(time.perf_counter())
    cri.start(container_id)
    times.append(time.perf_counter())
    run_ms, create_ms, start_ms = ((after - before) * 1000 for before, after in itertools.pairwise(times))
    return Pod(pod_id, container_id, run_ms, create_ms, start_ms)


def remove_pod(engine: Engine, pod: Pod) -> None:
    engine.cri.stop_pod(pod.id)
    engine.cri.remove_pod(pod.id)


def remove_pods(engine: Engine, pods: Iterable[Pod]) -> None:
    with ThreadPoolExecutor(REMOVALS_AT_ONCE) as pool:
        list(pool.map(lambda pod: remove_pod(engine, pod), pods))


def serial(engine: Engine, handlers: Sequence[str], rounds: int) -> dict[str, Samples]:
    """One pod of each handler per round, one at a time: total and per call."""
    samples = {name: Samples() for name in ("total", "run", "create", "start", "remove")}
    for handler in handlers:
        remove_pod(engine, start_pod(engine, handler))
    for _ in range(rounds):
        for handler in handlers:
            pod = start_pod(engine, handler)
            began = time.perf_counter()
            remove_pod(engine, pod)
            samples["remove"].add(handler, (time.perf_counter() - began) * 1000)
            # What the engine still does for it is not the next one's.
            time.sleep(_AFTER_REMOVAL_S)
            for name in ("total", "run", "create", "start"):
                samples[name].add(handler, getattr(pod, f"{name}_ms"))
    return samples


@dataclass(slots=True)
class Bursts:
    """Many pods at once, per handler and round: wall time and CPU time in seconds."""

    wall_s: Samples = field(default_factory=Samples)
    machine_cpu_s: Samples = field(default_factory=Samples)
    engine_cpu_s: Samples = field(default_factory=Samples)


def start_pods(engine: Engine, handler: str, count: int, at_once: int) -> list[Pod]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda _: start_pod(engine, handler), range(count)))


def bursts(engine: Engine, handlers: Sequence[str], rounds: int, count: int) -> Bursts:
    """`count` pods at once, the handlers taking turns."""
    result = Bursts()
    for _ in range(rounds):
        for handler in handlers:
            # What the removal before left to do must not be counted here.
            time.sleep(1)
            machine_s, engine_s = census.machine_cpu_s(), census.engine_cpu_s(engine)
            began = time.perf_counter()
            pods = start_pods(engine, handler, count, count)
            result.wall_s.add(handler, time.perf_counter() - began)
            result.machine_cpu_s.add(handler, census.machine_cpu_s() - machine_s)
            result.engine_cpu_s.add(handler, census.engine_cpu_s(engine) - engine_s)
            remove_pods(engine, pods)
    return result


def execs(engine: Engine, handlers: Sequence[str], rounds: int) -> Samples:
    """ExecSync of `true` in one container per handler."""
    samples = Samples()
    pods = {handler: start_pod(engine, handler) for handler in handlers}
    for pod in pods.values():
        engine.cri.exec(pod.container, ["true"])
    for _ in range(rounds):
        for handler, pod in pods.items():
            began = time.perf_counter()
            answer = engine.cri.exec(pod.container, ["true"])
            samples.add(handler, (time.perf_counter() - began) * 1000)
            if answer.exit_code != 0:
                raise RuntimeError(f"{handler}: `true` ended with {answer.exit_code}: {answer.stderr!r}")
    remove_pods(engine, pods.values())
    return samples


def settle(timeout_s: float = 30.0) -> None:
    """Wait until the machine has nothing left to do of what was started before, so that it is not measured."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        before = _cpu_times()
        time.sleep(1)
        busy, total = (now - then for now, then in zip(_cpu_times(), before, strict=True))
        if busy < QUIET * total:
            return


def _cpu_times() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)
