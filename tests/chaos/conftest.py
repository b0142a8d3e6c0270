"""An engine whose sandboxer is there to be killed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.trial import Trial
from tests.engine.conftest import EVIDENCE, logs, parts, pytest_runtest_makereport, vm_parts
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC, Handler

__all__ = ["logs", "parts", "pytest_runtest_makereport", "vm_parts"]


@contextmanager
def running(session: pytest.Session, handler: Handler) -> Iterator[Trial]:
    """An engine without a sandboxer: the trial starts it."""
    collectors = session.stash.setdefault(EVIDENCE, [])
    with Engine(handler) as engine:
        collectors.append(engine.evidence)
        try:
            engine.start()
            yield Trial(engine)
        finally:
            collectors.remove(engine.evidence)


@pytest.fixture
def handler() -> Handler:
    """Whose pods the trial is made with, where a test says nothing else."""
    return RUNC


@pytest.fixture
def trial(parts: None, handler: Handler, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine of the test's own; the sandboxer is not started yet."""
    with running(request.session, handler) as trial:
        yield trial


@pytest.fixture(scope="module")
def shared_trial(parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine with a sandboxer that the tests of a module share; the parameter is an element of `SHARED`."""
    handler, without = request.param
    with running(request.session, handler) as trial:
        trial.start(config=trial.impatient_config(1.0), env={"SANDBOXD_WITHOUT": without})
        yield trial
