"""A daemon that is killed again and again while pods start, stop, are asked to run commands, and write logs."""

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

from tests.chaos.results import RESULTS, record
from tests.chaos.sizes import SEED
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod, strays


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


def kill_at_random(trial: Trial, name: str, *, kills: int, pods: int, longest_pause_s: float) -> None:
    """Kill the daemon, which has been started, and fail if anybody can tell; the figures are kept under a name.

    :param longest_pause_s: after it serves again, the next kill comes within this time.
    """
    print(f"repeat with CHAOS_SEED={SEED}")
    rng = random.Random(SEED)
    first = Pod(trial, host_network=False)
    first.stop(first.writer())
    first.remove()
    trial.restart()
    before = trial.remains()
    strays.clear()
    over, tally = threading.Event(), Tally()
    with ThreadPoolExecutor(pods) as pool:
        busy = [pool.submit(keep_busy, trial, number, over, tally) for number in range(pods)]
        try:
            for _ in range(kills):
                time.sleep(rng.uniform(0, longest_pause_s))
                if any(pod.done() for pod in busy):
                    break
                trial.engine.wait_for_daemon()
                # Also while it has only just begun to serve.
                time.sleep(rng.choice((0.0, rng.uniform(0, 0.5))))
                trial.engine.kill_daemon()
                tally.add("kills")
        finally:
            over.set()
        wait(busy)
        try:
            for pod in busy:
                pod.result()
        except BaseException:
            # The ends of the logs, which any failure shows, are not where it happened.
            kept = shutil.copytree(trial.engine.logs, RESULTS / f"chaos-{name}-logs", dirs_exist_ok=True)
            # What machines have said, and what is on record of their containers.
            for path in (
                *trial.state().glob("*/machine/*.log"),
                *trial.state().glob("*/containers/*/*.json"),
            ):
                shutil.copy(path, kept / "-".join(path.relative_to(trial.state()).parts))
            raise
    trial.engine.wait_for_daemon()
    forgotten = trial.forgotten_exec_codes
    record(
        name,
        seed=SEED,
        refusals=len(trial.told),
        strays=len(strays),
        forgotten_exec_codes=forgotten,
        **tally.counts,
    )
    assert forgotten <= max(1, kills // 50)
    assert trial.lost_connections() == []
    trial.expect_nothing_more_than(before)
