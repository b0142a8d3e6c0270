"""An engine whose sandboxer is there to be killed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.sizes import FULL, WITHOUT, WITHOUT_IDS
from tests.chaos.trial import Trial
from tests.engine.conftest import EVIDENCE, logs, parts, pytest_runtest_makereport, vm_parts
from tests.engine.engine import Engine

__all__ = ["logs", "parts", "pytest_runtest_makereport", "vm_parts"]


@contextmanager
def running(session: pytest.Session) -> Iterator[Trial]:
    """An engine without a sandboxer: the trial starts it."""
    collectors = session.stash.setdefault(EVIDENCE, [])
    with Engine() as engine:
        collectors.append(engine.evidence)
        try:
            engine.start()
            yield Trial(engine)
        finally:
            collectors.remove(engine.evidence)


@pytest.fixture
def trial(parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine of the test's own; the sandboxer is not started yet."""
    with running(request.session) as trial:
        yield trial


@pytest.fixture(
    scope="module", params=WITHOUT if FULL else WITHOUT[:1], ids=WITHOUT_IDS if FULL else WITHOUT_IDS[:1]
)
def shared_trial(parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine with a sandboxer that the tests of a module share."""
    with running(request.session) as trial:
        trial.start(config=trial.impatient_config(1.0), env={"SANDBOXD_WITHOUT": request.param})
        yield trial
