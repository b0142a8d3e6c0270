"""kill -9 at random moments while VM pods start, stop, are asked to run commands, and write logs."""

from collections.abc import Iterator

import pytest

from tests.chaos.conftest import running
from tests.chaos.kills import kill_at_random
from tests.chaos.sizes import FULL, SIZES
from tests.chaos.trial import Trial
from tests.engine.handlers import QEMU
from tests.engine.qemu import write_config

# A machine boots in three to ten seconds here, and most are to get that far.
LONGEST_PAUSE_S = 20.0


@pytest.fixture
def trial(vm_parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine of the test's own."""
    with running(request.session, QEMU) as trial:
        yield trial


@pytest.mark.slow
@pytest.mark.timeout(3600 if FULL else 600)
def test_kills_at_random_moments_lose_no_container_exit_code_or_log_line(trial: Trial) -> None:
    # A pod whose start nobody was told of is the collector's.
    config = write_config(trial.directory, {"gc": {"interval_s": 1.0, "grace_s": 2.0}})
    trial.start(config=config)
    kill_at_random(
        trial,
        trial.named("kills"),
        kills=SIZES.vm_kills,
        pods=SIZES.vm_kill_pods,
        longest_pause_s=LONGEST_PAUSE_S,
    )
