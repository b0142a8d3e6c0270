"""Containers end while no daemon runs: the next one tells their true exit codes and when it was."""

import time

import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.results import record
from tests.chaos.sizes import HANDLERS, SIZES, SUPERVISOR, WAYS, WAYS_IDS, way_name
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.engine.namespaces import wait_until

SHARED = "/shared"


@pytest.mark.parametrize(("keeper", "without"), WAYS, ids=WAYS_IDS)
@pytest.mark.parametrize("handler", HANDLERS, ids=str)
def test_exits_while_the_daemon_is_down_are_told_truly(trial: Trial, keeper: str, without: str) -> None:
    trial.start(env={"SANDBOXD_WITHOUT": without}, keeper=keeper)
    shared = trial.directory / "shared"
    shared.mkdir()
    mounts = [pb.Mount(host_path=str(shared), container_path=SHARED)]
    pod = Pod(trial)
    containers = {
        code: pod.run(
            *pod.programs.wait(f"{SHARED}/go", f"{SHARED}/{code}.end", code), name=f"c{code}", mounts=mounts
        )
        for code in range(1, SIZES.exits + 1)
    }
    trial.hold()
    trial.engine.kill_daemon()
    (shared / "go").touch()
    wait_until(lambda: len(list(shared.glob("*.end"))) == SIZES.exits, timeout_s=20, what="all ends")
    # A daemon that took the time of its own notice would be off by more than a second.
    time.sleep(3)
    trial.release()
    trial.engine.wait_for_daemon()
    came_back_s = time.time()

    for container in containers.values():
        pod.wait(container)
    statuses = {code: pod.status(container) for code, container in containers.items()}
    assert {code: status.exit_code for code, status in statuses.items()} == {
        code: code for code in containers
    }
    off_s = {
        code: status.finished_at / 1e9 - (shared / f"{code}.end").stat().st_mtime
        for code, status in statuses.items()
    }
    name = trial.named(way_name("exits", keeper, without))
    if keeper == SUPERVISOR:
        worst_s = max(map(abs, off_s.values()))
        record(name, 1.0, worst_s=round(worst_s, 3), true_codes=len(off_s))
        assert worst_s < 1, off_s
    else:
        # Only the code is kept by the kernel; the time is when the daemon that came back has asked.
        record(name, true_codes=len(off_s))
        assert all(off > -1 for off in off_s.values()), off_s
        assert all(status.finished_at / 1e9 < came_back_s for status in statuses.values())
    assert trial.told == []
    assert trial.lost_connections() == []
