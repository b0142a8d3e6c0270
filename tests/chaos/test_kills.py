"""kill -9 at random moments while pods start, stop, are asked to run commands, and write logs."""

import pytest

from tests.chaos.kills import kill_at_random
from tests.chaos.sizes import FULL, HANDLERS, SIZES, WAYS, WAYS_IDS, way_name
from tests.chaos.trial import Trial

# The engine takes up to three seconds until it connects again, and is to get something done in between.
LONGEST_PAUSE_S = 3.0


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize(("keeper", "without"), WAYS, ids=WAYS_IDS)
@pytest.mark.parametrize("handler", HANDLERS, ids=str)
def test_kills_at_random_moments_lose_no_container_exit_code_or_log_line(
    trial: Trial, keeper: str, without: str
) -> None:
    # A pod whose start nobody was told of is the collector's.
    trial.start(config=trial.impatient_config(2.0), env={"SANDBOXD_WITHOUT": without}, keeper=keeper)
    name = trial.named(way_name("kills", keeper, without))
    kill_at_random(trial, name, kills=SIZES.kills, pods=SIZES.kill_pods, longest_pause_s=LONGEST_PAUSE_S)
