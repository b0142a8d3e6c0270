"""What containerd tells of itself is what garbage collection takes it for."""

import asyncio

import pytest

from common.errors import Unavailable
from sandboxers.engine import list_engine
from tests.engine.conftest import start_container
from tests.engine.engine import STOCK_CRUN, Engine

ADDRESS = "run/containerd/containerd.sock"


def test_containerd_lists_the_pods_and_tasks_that_it_knows_and_no_other(own_engine: Engine) -> None:
    address = str(own_engine.namespaces.root / ADDRESS)
    pod, container = start_container(own_engine.cri)
    _, stock = start_container(own_engine.cri, handler=STOCK_CRUN)
    known = asyncio.run(list_engine(address, 10))
    assert pod in known.sandboxes
    assert {container, stock} <= known.tasks
    own_engine.cri.stop_container(container)
    assert pod in asyncio.run(list_engine(address, 10)).sandboxes
    own_engine.cri.stop_pod(pod)
    own_engine.cri.remove_pod(pod)
    known = asyncio.run(list_engine(address, 10))
    assert pod not in known.sandboxes
    assert container not in known.tasks
    assert stock in known.tasks
    own_engine.restart_containerd()
    assert stock in asyncio.run(list_engine(address, 10)).tasks
    own_engine.stop_containerd()
    with pytest.raises(Unavailable):
        asyncio.run(list_engine(address, 10))
