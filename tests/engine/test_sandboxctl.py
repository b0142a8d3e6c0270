"""sandboxctl beside a real containerd, whose pods these are."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.engine.cri import EXITED, Cri, container_config, log_lines, pod_config
from tests.engine.engine import OURS, PYTHON, Engine
from tests.engine.images import BUSYBOX, CHECKOUT
from tests.engine.namespaces import wait_until


class Operator:
    """Somebody at the engine's node."""

    def __init__(self, engine: Engine) -> None:
        self._namespaces = engine.namespaces
        self._config = str(engine.ours.config)
        self._environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(PYTHON), "-m", "sandboxctl", "--config", self._config, *words]
        return self._namespaces.run(command, check=False, env=self._environment)


@pytest.fixture
def ctl(engine: Engine) -> Operator:
    return Operator(engine)


@pytest.fixture
def container(cri: Cri, logs: Path) -> str:
    """A container that has written a line to each output, which the log has in whatever order, and waits."""
    pod = pod_config(log_directory=str(logs))
    pod_id = cri.run_pod(pod, OURS)
    command = ("sh", "-c", "trap 'exit 5' TERM; echo out; echo err >&2; while :; do sleep 0.1; done")
    container_id = cri.create(pod_id, container_config(command, log_path="main.log"), pod)
    cri.start(container_id)
    log = logs / "main.log"
    wait_until(lambda: log.exists() and len(log_lines(log)) == 2, timeout_s=20, what="both lines")
    return container_id


def test_a_container_of_the_engine_is_seen_and_joined(ctl: Operator, container: str) -> None:
    (shown,) = json.loads(ctl("ps", "-c", "--json").stdout)
    assert (shown["id"], shown["name"], shown["image"], shown["state"]) == (
        container,
        "main",
        BUSYBOX,
        "running",
    )
    done = ctl("exec", container, "sh", "-c", "echo joined; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "joined\n", "")
    (usage,) = json.loads(ctl("stats", "--once", "--json", container).stdout)
    assert usage["memoryBytes"] > 0 and usage["processes"] >= 1


def test_the_log_is_found_where_the_engine_writes_it(ctl: Operator, container: str) -> None:
    done = ctl("logs", container)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_an_end_by_force_is_an_end_like_any_other_to_the_engine(
    ctl: Operator, container: str, cri: Cri
) -> None:
    refused = ctl("stop", container)
    assert refused.returncode == 1
    assert "belongs to the engine" in refused.stderr
    assert ctl("stop", "--force", container).returncode == 0
    # The engine hears of it a moment later.
    wait_until(lambda: cri.container(container).state == EXITED, timeout_s=20, what="the container's end")
    assert cri.container(container).exit_code == 5


def test_the_running_containerd_is_found_to_be_configured(ctl: Operator) -> None:
    checked = ctl("containerd", "check", "--json")
    findings = json.loads(checked.stdout)
    assert [finding for finding in findings if f"pods of the handler {OURS} reach" in finding["found"]], (
        findings
    )
    assert "2." in {finding["subject"]: finding["found"] for finding in findings}["containerd"]
