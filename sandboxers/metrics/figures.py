"""All figures of a daemon: what is counted as it happens, and what is looked at when somebody asks.

Every series has the label `type`, so that the daemons of a node can be one job. What a name means is in
docs/observability.md.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import Any, Final

from common.log import Level, observe_events
from common.operations import Operation, observe_operations
from common.ttrpc import Server
from sandboxers.garbage import Garbage
from sandboxers.metrics.families import Counter, Histogram, Labels, family
from sandboxers.metrics.process import process_lines
from sandboxers.registry import SandboxRegistry

# Parked until something ends: how long that takes is no latency.
_PARKED: Final = frozenset({"Wait"})
_EXITED: Final = "container.exited"
_OOM: Final = "container.oom"


class Figures:
    """What one daemon has to tell. Counts from `watch` on."""

    def __init__(self, kind: str, generation: int) -> None:
        """:param kind: the isolation type. :param generation: which daemon of this state directory since the boot."""
        self._kind = kind
        self._generation = generation
        self._operations = Histogram(
            "sandboxd_operation_seconds", "How long operations took.", "operation", "outcome"
        )
        self._steps = Histogram(
            "sandboxd_step_seconds", "How long the steps of operations took.", "operation", "step"
        )
        self._calls = Histogram("sandboxd_rpc_seconds", "How long calls took.", "service", "method")
        self._answers = Counter(
            "sandboxd_rpc_total", "Calls that were answered, by status code.", "service", "method", "code"
        )
        self._exits = Counter("sandboxd_container_exits_total", "Containers that have ended.", "code")
        self._ooms = Counter("sandboxd_oom_kills_total", "Processes killed for want of memory.")
        self._events = Counter("sandboxd_events_total", "Events by their name in the log.", "level", "event")

    def watch(self) -> None:
        """Count from now on; there is one per process."""
        observe_operations(self.note_operation)
        observe_events(self.note_event)
        Server.observe(self.note_call)

    def note_operation(self, ended: Operation) -> None:
        """Count an operation and its steps."""
        outcome = "ok" if ended.error is None else "error"
        self._operations.add(ended.took_ns / 1e9, ended.action.value, outcome)
        before_ns = 0
        for step, at_ns in ended.steps:
            self._steps.add((at_ns - before_ns) / 1e9, ended.action.value, step)
            before_ns = at_ns

    def note_call(self, service: str, method: str, code: int, seconds: float) -> None:
        """Count a call; `code` is a number of google.rpc.Code."""
        self._answers.add(service, method, str(code))
        if method not in _PARKED:
            self._calls.add(seconds, service, method)

    def note_event(self, level: Level, event: str, fields: Mapping[str, Any]) -> None:
        """Count an event of the log, by itself and as what it stands for."""
        self._events.add(level.value, event)
        if event == _EXITED:
            self._exits.add(str(fields.get("exit_code", "")))
        elif event == _OOM:
            self._ooms.add(amount=fields.get("kills", 1))

    def text(self, registry: SandboxRegistry, garbage: Garbage) -> str:
        """Return everything in Prometheus's text format."""
        label = f'type="{self._kind}"'
        lines = [_labelled(line, label) for line in self._lines(registry, garbage)]
        return "\n".join(lines) + "\n"

    def _lines(self, registry: SandboxRegistry, garbage: Garbage) -> Iterator[str]:
        yield from family(
            "sandboxd_generation",
            "gauge",
            "Daemons that have served this state directory since the boot, this one included.",
            (),
            {(): self._generation},
        )
        yield from self._states(registry)
        yield from _garbage_lines(garbage.figures)
        for counted in (
            self._operations,
            self._steps,
            self._calls,
            self._answers,
            self._exits,
            self._ooms,
            self._events,
        ):
            yield from counted.lines()
        yield from process_lines()

    @staticmethod
    def _states(registry: SandboxRegistry) -> Iterator[str]:
        sandboxes: Tally[Labels] = Tally()
        containers: Tally[Labels] = Tally()
        for entry in registry.entries:
            sandboxes[entry.state.value,] += 1
            for container in entry.sandbox.details().get("containers", {}).values():
                containers[container["state"],] += 1
        yield from family("sandboxd_sandboxes", "gauge", "Pods by state.", ("state",), sandboxes)
        yield from family("sandboxd_containers", "gauge", "Containers by state.", ("state",), containers)
        yield from family(
            "sandboxd_unreadable_sandboxes",
            "gauge",
            "Pods that could not be recovered and are left as they are.",
            (),
            {(): len(registry.untouched)},
        )


def _garbage_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    removed: dict[Labels, float] = {
        ("sandbox",): figures["sandboxes_removed"],
        ("container",): figures["tasks_removed"],
    }
    yield from family(
        "sandboxd_garbage_removed_total",
        "counter",
        "What was removed since the boot because its engine had forgotten it.",
        ("kind",),
        removed,
    )
    yield from family(
        "sandboxd_garbage_suspects",
        "gauge",
        "What its engine has forgotten, but not for long enough.",
        (),
        {(): figures["missing"]},
    )
    yield from family(
        "sandboxd_engine_unavailable",
        "gauge",
        "1 if the engine could not be asked when that was last tried.",
        (),
        {(): int(bool(figures["last_error"]))},
    )


def _labelled(line: str, label: str) -> str:
    """Add a label to a sample."""
    if line.startswith("#"):
        return line
    name, brace, rest = line.partition("{")
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"
