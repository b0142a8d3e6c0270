"""Operations on pods and containers: what is being done, since when, which steps are behind it, and how it ended.

    with operation(Action.CONTAINER_CREATE, sandbox_id, container_id):
        ...

Every failpoint that is passed inside is a step that is done (`common/failpoints.py`); every log line inside bears the
ids. While an operation is in progress `in_progress` shows it, and when it has ended the observers are told. Nothing of
it is kept then: what has been started long ago costs no memory.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common.log import bound

Metadata = Iterable[tuple[str, str | bytes]]
"""What came with a call beside its request, as pairs of a lower-case key and a value."""


class Action(enum.StrEnum):
    """What operations there are: each is one call of an engine."""

    SANDBOX_CREATE = "sandbox.create"
    SANDBOX_START = "sandbox.start"
    SANDBOX_STOP = "sandbox.stop"
    SANDBOX_REMOVE = "sandbox.remove"
    CONTAINER_CREATE = "container.create"
    CONTAINER_START = "container.start"
    CONTAINER_DELETE = "container.delete"
    EXEC_CREATE = "exec.create"
    EXEC_START = "exec.start"
    EXEC_DELETE = "exec.delete"


class Operation:
    """One operation. `steps` are names with the ns since it began, `began_at_ns` is since the epoch; `took_ns` is -1,
    and `error` None, while it is in progress. `pod` is the pod's namespace and name where the caller knows them."""

    __slots__ = (
        "_begun_ns",
        "action",
        "began_at_ns",
        "container_id",
        "error",
        "exec_id",
        "metadata",
        "pod",
        "sandbox_id",
        "steps",
        "took_ns",
    )

    def __init__(
        self, action: Action, sandbox_id: str, container_id: str, exec_id: str, pod: str, metadata: Metadata
    ) -> None:
        self.action = action
        self.sandbox_id = sandbox_id
        self.container_id = container_id
        self.exec_id = exec_id
        self.pod = pod
        self.metadata = metadata
        self.began_at_ns = time.time_ns()
        self._begun_ns = time.monotonic_ns()
        self.steps: list[tuple[str, int]] = []
        self.took_ns = -1
        self.error: BaseException | None = None

    @property
    def age_ns(self) -> int:
        """How long ago it began."""
        return time.monotonic_ns() - self._begun_ns

    @property
    def ids(self) -> dict[str, str]:
        """What it is about, for a log line."""
        ids = {"sandbox_id": self.sandbox_id, "container_id": self.container_id, "exec_id": self.exec_id}
        return {name: value for name, value in ids.items() if value}

    def note(self, step: str) -> None:
        """Take down that a step is done."""
        self.steps.append((step, self.age_ns))

    def as_data(self) -> dict[str, Any]:
        """Return what can be written down of it as JSON; times are µs since it began."""
        return {
            "action": self.action.value,
            "sandbox_id": self.sandbox_id,
            "container_id": self.container_id,
            "exec_id": self.exec_id,
            "pod": self.pod,
            "began_at_ns": self.began_at_ns,
            "age_us": (self.age_ns if self.took_ns < 0 else self.took_ns) // 1000,
            "steps": [[step, at_ns // 1000] for step, at_ns in self.steps],
            "error": "" if self.error is None else str(self.error) or type(self.error).__name__,
        }


Observer = Callable[[Operation], None]

_running: dict[int, Operation] = {}
_observers: list[Observer] = []
_numbers = itertools.count(1)
# A number and not the operation: whatever is begun inside, as a reader on a socket that outlives it, keeps the context.
_current: contextvars.ContextVar[int] = contextvars.ContextVar("operation", default=0)


@contextlib.contextmanager
def operation(
    action: Action,
    sandbox_id: str,
    container_id: str = "",
    exec_id: str = "",
    *,
    pod: str = "",
    metadata: Metadata = (),
) -> Iterator[None]:
    """Let what is done inside be an operation; an error that leaves it is the operation's."""
    begun = Operation(action, sandbox_id, container_id, exec_id, pod, metadata)
    number = next(_numbers)
    outer = _current.get()
    _current.set(number)
    _running[number] = begun
    try:
        with bound(**begun.ids):
            yield
    except BaseException as error:
        begun.error = error
        raise
    finally:
        # Not reset(token), as in `common.log.bound`.
        _current.set(outer)
        del _running[number]
        begun.took_ns = begun.age_ns
        for observe in _observers:
            observe(begun)


def note_step(step: str) -> None:
    """Take down a step of the operation that this is called in, if any is in progress."""
    if (current := _running.get(_current.get())) is not None:
        current.note(step)


def in_progress(sandbox_id: str) -> list[Operation]:
    """Return the operations on a pod and its containers that have not ended, oldest first."""
    return [running for running in _running.values() if running.sandbox_id == sandbox_id]


def observe_operations(observer: Observer) -> None:
    """Let an observer, which must not raise, be told of every operation that has ended."""
    _observers.append(observer)


def ignore_operations(observer: Observer) -> None:
    """Let an observer be told no more."""
    _observers.remove(observer)
