"""Pods that come and go leave the daemon as it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bench import census
from tests.engine.conftest import start_container
from tests.engine.daemons import descriptors, stable_descriptors
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC, WASM, Handler
from tests.engine.namespaces import wait_until

ROUNDS = 200
# Until then the allocators still find their size.
WARM_UP_ROUNDS = 400
# A leak of 2 KiB per pod would show.
MEMORY_SLACK_KIB = 400


@pytest.fixture(scope="module", params=(RUNC, WASM), ids=str)
def handler(request: pytest.FixtureRequest) -> Handler:
    return request.param  # type: ignore[no-any-return]


def start(engine: Engine) -> tuple[str, str]:
    ours = engine.ours
    return start_container(engine.cri, *ours.programs.sleep, handler=ours.name, image=ours.programs.image)


def sockets(engine: Engine) -> int:
    """Descriptors of the kinds of which gRPC opens and closes some as it likes."""
    pid = engine.daemon_pid
    return len(set(descriptors(pid)) - stable_descriptors(pid))


def memory_kib(engine: Engine) -> int:
    """What the daemon has allocated: its share of mapped files grows whenever another interpreter ends."""
    rollup = Path(f"/proc/{engine.sandboxer_pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))


@pytest.mark.timeout(300)
def test_200_pods_in_a_loop_leave_no_descriptor_mount_or_memory(own_engine: Engine) -> None:
    def cycle(_: int) -> None:
        pod, container = start(own_engine)
        assert own_engine.cri.exec(container, own_engine.ours.programs.say("out", "err", 7)).exit_code == 7
        own_engine.cri.stop_pod(pod)
        own_engine.cri.remove_pod(pod)

    def several(count: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(cycle, range(count)))

    measures: dict[str, Callable[[Engine], int]] = {
        "descriptors": lambda engine: len(stable_descriptors(engine.daemon_pid)),
        "mounts": census.mounts,
        "threads": lambda engine: census.management(engine, stock=False).threads,
    }
    several(WARM_UP_ROUNDS)
    before = {name: measure(own_engine) for name, measure in measures.items()}
    sockets_before = sockets(own_engine)
    memory_before_kib = memory_kib(own_engine)
    several(ROUNDS)

    def grown() -> dict[str, int]:
        return {name: measure(own_engine) - before[name] for name, measure in measures.items()}

    # What the last pods had may close after the engine has its answer.
    wait_until(lambda: max(grown().values()) <= 0, timeout_s=20, what="as few as before")
    assert sockets(own_engine) - sockets_before < ROUNDS // 10
    assert memory_kib(own_engine) - memory_before_kib < MEMORY_SLACK_KIB


@pytest.mark.timeout(300)
def test_50_pods_at_once_all_run_and_all_go(own_engine: Engine) -> None:
    cri = own_engine.cri
    with ThreadPoolExecutor(50) as pool:
        pods = list(pool.map(lambda _: start(own_engine), range(50)))
    with ThreadPoolExecutor(10) as pool:
        say = own_engine.ours.programs.say("here", "there", 0)
        answers = list(pool.map(lambda pod: cri.exec(pod[1], say).stdout, pods))
        assert answers == [b"here\n"] * 50
        list(pool.map(lambda pod: cri.remove_pod(pod[0]), pods))
    assert not list(cri.pods())
