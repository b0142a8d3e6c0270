"""kill -9 at random moments while pods start, stop, are asked to run commands, and write logs."""

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from tests.chaos.results import RESULTS, record
from tests.chaos.sizes import FULL, HANDLERS, SEED, SIZES, WAYS, WAYS_IDS, way_name
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod, strays

# The engine takes up to three seconds until it connects again, and is to get something done in between.
LONGEST_PAUSE_S = 3.0


class Tally:
    """What all pods together have done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}

    def add(self, what: str, count: int = 1) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + count


def keep_busy(trial: Trial, number: int, over: threading.Event, tally: Tally) -> None:
    """A pod that lives all the time with a writer in it, and containers and pods that come and go."""
    rng = random.Random(f"{SEED}/{number}")
    stays = Pod(trial)
    writer = stays.writer()
    serial = 0
    while not over.is_set():
        serial += 1
        code = rng.randrange(1, 120)
        stays.expect_exec(writer, code)
        tally.add("execs")
        if rng.random() < 0.5:
            short = stays.run(*stays.programs.say("begun", "over", code, pause_s=0.1), name=f"short{serial}")
            assert stays.exit_code(short) == code
            stays.remove_container(short)
            tally.add("short containers")
        else:
            passing = Pod(trial, host_network=rng.random() < 0.7)
            other = passing.writer()
            passing.expect_exec(other, code)
            tally.add("log lines", passing.end_writer(other))
            passing.remove()
            tally.add("pods")
    assert stays.is_ready
    tally.add("log lines", stays.end_writer(writer))
    stays.remove()


@pytest.mark.timeout(1800 if FULL else 90)
@pytest.mark.parametrize(("keeper", "without"), WAYS, ids=WAYS_IDS)
@pytest.mark.parametrize("handler", HANDLERS, ids=str)
def test_kills_at_random_moments_lose_no_container_exit_code_or_log_line(
    trial: Trial, keeper: str, without: str
) -> None:
    print(f"repeat with CHAOS_SEED={SEED}")
    name = trial.named(way_name("kills", keeper, without))
    rng = random.Random(SEED)
    # A pod whose start nobody was told of is the collector's.
    trial.start(config=trial.impatient_config(2.0), env={"SANDBOXD_WITHOUT": without}, keeper=keeper)
    first = Pod(trial, host_network=False)
    first.stop(first.writer())
    first.remove()
    trial.restart()
    before = trial.remains()
    strays.clear()
    over, tally = threading.Event(), Tally()
    with ThreadPoolExecutor(SIZES.kill_pods) as pool:
        pods = [pool.submit(keep_busy, trial, number, over, tally) for number in range(SIZES.kill_pods)]
        try:
            for _ in range(SIZES.kills):
                time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
                if any(pod.done() for pod in pods):
                    break
                trial.engine.wait_for_daemon()
                # Also while it has only just begun to serve.
                time.sleep(rng.choice((0.0, rng.uniform(0, 0.5))))
                trial.engine.kill_daemon()
                tally.add("kills")
        finally:
            over.set()
        wait(pods)
        try:
            for pod in pods:
                pod.result()
        except BaseException:
            # The ends of the logs, which any failure shows, are not where it happened.
            shutil.copytree(trial.engine.logs, RESULTS / f"chaos-{name}-logs", dirs_exist_ok=True)
            raise
    trial.engine.wait_for_daemon()
    record(name, seed=SEED, refusals=len(trial.told), strays=len(strays), **tally.counts)
    assert trial.lost_connections() == []
    trial.expect_nothing_more_than(before, timeout_s=20)
