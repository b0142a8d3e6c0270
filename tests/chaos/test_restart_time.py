"""How long nobody answers when the daemon of many pods is killed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from tests.chaos.results import record
from tests.chaos.sizes import FULL, SIZES
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.engine.engine import Engine

ROUNDS = 5 if FULL else 2


def started_s(pid: int) -> float:
    """When a process was started, in seconds since the boot, to the tick of 10 ms (proc_pid_stat(5), starttime)."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def first_status_s(engine: Engine, pod: str) -> float:
    """Ask for a pod until there is an answer; when that was, in seconds since the boot."""
    address = f"unix:{engine.namespaces.root / engine.ours.socket}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # A channel of its own for each try: gRPC would wait before it connects again.
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                api_grpc.ControllerStub(channel).Status(
                    api.ControllerStatusRequest(sandbox_id=pod), timeout=10
                )
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                time.sleep(0.005)
            else:
                return time.clock_gettime(time.CLOCK_BOOTTIME)
    raise TimeoutError("waited 30 s for a status")


@pytest.mark.timeout(900 if FULL else 120)
def test_a_new_daemon_soon_answers_for_many_pods(trial: Trial) -> None:
    trial.start()

    def start(_: int) -> Pod:
        pod = Pod(trial)
        pod.run("sleep", "1000000")
        return pod

    with ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(start, range(SIZES.restart_pods)))
    took_s = []
    for _ in range(ROUNDS):
        trial.engine.kill_daemon()
        answered_s = first_status_s(trial.engine, pods[-1].id)
        took_s.append(round(answered_s - started_s(trial.engine.daemon_pid), 3))
    record("restart", 2.0, slowest_s=max(took_s), pods=len(pods), from_start_to_first_status_s=took_s)
    for pod in pods:
        assert pod.is_ready
    assert trial.lost_connections() == []
