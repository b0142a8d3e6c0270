"""kill -9 at every failpoint in turn: each client gets the truth or "unavailable", and nothing is left over."""

from collections.abc import Iterator

import pytest

from common.failpoints import Failpoint
from tests.chaos.results import record
from tests.chaos.sizes import FULL, SHARED, SHARED_IDS, SIZES
from tests.chaos.trial import Trial
from tests.chaos.workload import Container, Pod
from tests.engine.cri import log_lines
from tests.engine.handlers import RUNC, Handler
from tests.engine.namespaces import wait_until
from tests.engine.streaming import attach_stream, exec_piped, exec_stream

# A terminal gets its size when it is there already.
SIZED = ("sh", "-c", 'until [ "$(stty size 2>/dev/null)" = "37 101" ]; do sleep 0.1; done; stty size; exit 4')
# Passed only after a death in the middle of something.
AFTER = {Failpoint.RECOVERY_CONTAINER_UNDONE: Failpoint.CONTAINER_MADE}
RECOVERY = {point for point in Failpoint if point.value.startswith("recovery.")} - AFTER.keys()
# Those of virtual machines, which tests/chaos/test_qemu_failpoints.py passes.
OF_MACHINES = {
    point
    for point in Failpoint
    if point.startswith(("machine.", "device.", "link.", "guest.", "sandbox.guest_", "sandbox.network_"))
} | {
    Failpoint.SANDBOX_CGROUP_MADE,
    Failpoint.SANDBOX_SHARE_MADE,
    Failpoint.SANDBOX_MACHINE_STARTED,
    Failpoint.CONTAINER_VOLUMES_MOUNTED,
    Failpoint.CONTAINER_DISK_ATTACHED,
}
COMPILING = {Failpoint.MODULE_COMPILED, Failpoint.MODULE_CACHED}


def points_of(handler: Handler) -> list[Failpoint]:
    """The failpoints that pods of a handler pass; at little size those of a type's own only, beyond the first type."""
    points = [point for point in Failpoint if point not in OF_MACHINES]
    if handler == RUNC:
        return [point for point in points if not point.startswith("module.")]
    own = ("module.", "container.", "exec.")
    return [point for point in points if FULL or point.startswith(own)]


TRIALS = [
    pytest.param(shared, point, id=f"{name} {point}")
    for shared, name in zip(SHARED, SHARED_IDS, strict=True)
    for point in points_of(shared[0])
]


@pytest.fixture
def tidy_trial(shared_trial: Trial) -> Iterator[Trial]:
    """The shared engine without pods, whatever the test before has left; what belongs to the engine is made."""
    shared_trial.release()
    shared_trial.engine.wait_for_daemon()
    shared_trial.remove_all_pods()
    if shared_trial.starts == 1:
        live(shared_trial)
    shared_trial.told.clear()
    yield shared_trial


@pytest.fixture(scope="module")
def hit(shared_trial: Trial) -> Iterator[dict[str, int]]:
    """How many of what clients asked for were refused, by failpoint at which the daemon was killed."""
    refusals: dict[str, int] = {}
    yield refusals
    record(
        shared_trial.named("failpoints"),
        kills=len(refusals),
        refusals={at: count for at, count in refusals.items() if count},
    )


def live(trial: Trial, *, kill_midway: bool = False) -> None:
    """A pod's whole life, with everything that a client can ask of it on the way."""
    pod = Pod(trial)
    writer = pod.writer()
    programs = pod.programs
    echo = pod.run(*programs.echo(5), name="echo", stdin=True)
    pod.expect_exec(writer, 3)

    with exec_piped(trial.engine, writer.id, *programs.cat(6)) as piped:
        assert piped.stdin is not None and piped.stdout is not None
        piped.stdin.write(b"over there\n")
        piped.stdin.flush()
        assert piped.stdout.readline() == b"over there\n"
        if kill_midway:
            trial.restart()
        assert piped.communicate(timeout=20)[0] == b""
        assert piped.returncode == 6
    use_terminal(trial, writer)
    with attach_stream(trial.engine, echo.id) as stream:
        stream.ask(b"it\n", b"got it\n")
        stream.write(b"end\n")
        # The engine may hang up on who is attached before it has passed on what came last; its log has it all.
        assert pod.exit_code(echo) == 5
    wait_until(lambda: "got end" in log_lines(echo.log), timeout_s=20, what="the end of the echo's log")

    pod.end_writer(writer)
    pod.remove_container(writer)
    # What is still there goes with the pod.
    pod.writer("second")
    pod.remove()


def use_terminal(trial: Trial, container: Container) -> None:
    programs = trial.handler.programs
    command = SIZED if programs.has_terminal_size else programs.echo(4)
    with exec_stream(trial.engine, container.id, *command, tty=True) as stream:
        stream.resize(101, 37)
        if programs.has_terminal_size:
            stream.expect(b"37 101")
        else:
            stream.write(b"end\n")
            stream.expect(b"got end")
        assert stream.wait() == 4


@pytest.mark.parametrize("passes", SIZES.failpoint_passes)
@pytest.mark.parametrize(("shared_trial", "point"), TRIALS, indirect=["shared_trial"], scope="module")
def test_nobody_can_tell_that_the_daemon_was_killed_at(
    tidy_trial: Trial, hit: dict[str, int], point: Failpoint, passes: int
) -> None:
    trial = tidy_trial
    in_recovery = point in RECOVERY
    if point in COMPILING:
        trial.forget_compiled_modules()
    before, starts = trial.remains(), trial.starts
    if in_recovery:
        trial.arm_next(f"{point}=kill@{passes}")
    elif point in AFTER:
        trial.arm(f"{AFTER[point]}=kill")
        trial.arm_next(f"{point}=kill@{passes}")
    else:
        trial.arm(f"{point}=kill@{passes}")
    live(trial, kill_midway=in_recovery)
    deaths = trial.starts - starts - (in_recovery or point in AFTER)
    trial.engine.wait_for_daemon()
    trial.expect_nothing_more_than(before)
    assert deaths == 1 or passes > 1, f"{point} was never passed"
    assert trial.lost_connections() == []
    hit[f"{point}@{passes}"] = len(trial.told)
