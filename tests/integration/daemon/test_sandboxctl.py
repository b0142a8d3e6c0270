"""sandboxctl with real pods and containers: what it shows, runs and ends, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.daemon.client import Container
from tests.integration.daemon.lab import Lab, until
from tests.integration.daemon.test_gc import CollectedNode
from tests.lines import complete_lines

SAY = ("sh", "-c", "echo out; echo err >&2; exit 7")


class OperatedNode(CollectedNode):
    """A daemon of the test's own, and an operator's shell."""

    async def prepare(self) -> None:
        # Here nobody waits for a runtime that hangs.
        text = self.daemon.config.read_text().replace("  timeout_s: 1.0", "  timeout_s: 20.0")
        self.daemon.config.write_text(text)
        await super().prepare()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sandboxctl", "--config", f"{self.daemon.base}/config.yaml", *words]

    async def ctl(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run sandboxctl to its end."""
        settings: dict[str, Any] = {"check": False, "env": self.daemon.environment, **options}
        return await asyncio.to_thread(self.lab.namespaces.run, self.command(*words), **settings)

    async def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script, in which $CTL is sandboxctl."""
        environment = {**self.daemon.environment, "CTL": " ".join(self.command())}
        run = self.lab.namespaces.run
        return await asyncio.to_thread(run, ["bash", "-c", script], check=False, env=environment)

    async def running(self) -> Container:
        """A container of a pod that its engine knows."""
        pod = await self.pod()
        container = await pod.running()
        self.engine.sandboxes.add(pod.id)
        self.engine.tasks.add(container.id)
        return container


@pytest_asyncio.fixture(loop_scope="session")
async def node(lab: Lab, _nothing_is_left_or_disturbed: None) -> AsyncIterator[OperatedNode]:
    node = OperatedNode(lab)
    await node.prepare()
    yield node
    leftovers = [path.name for path in lab.path("/run").glob("sandboxctl-*")]
    await node.engine.stop()
    await node.close()
    assert leftovers == []


async def test_pods_and_containers_are_listed_whether_a_daemon_runs_or_not(node: OperatedNode) -> None:
    container = await node.running()
    listed = json.loads((await node.ctl("ps", "--json")).stdout)
    assert [(pod["id"], pod["state"], pod["containers"]) for pod in listed] == [
        (container.pod.id, "running", [container.id])
    ]
    inspected = json.loads((await node.ctl("inspect", container.pod.id)).stdout)
    assert inspected["containers"][container.id]["state"] == "running"
    node.daemon.stop(signal.SIGKILL)
    table = await node.ctl("ps", "-c")
    assert container.id[:13] in table.stdout and "running" in table.stdout
    assert "does not run" in table.stderr
    refused = await node.ctl("inspect", container.pod.id)
    assert refused.returncode == 1
    assert "does not run" in refused.stderr and len(refused.stderr.splitlines()) == 1
    await node.start()


async def test_a_command_has_its_streams_and_hands_its_exit_code_on(node: OperatedNode) -> None:
    container = await node.running()
    done = await node.ctl("exec", container.id, *SAY)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    text = "a line\n" * 100_000
    done = await node.ctl("exec", "-i", container.pod.id, "--", "cat", input=text)
    assert (done.returncode, done.stdout == text, done.stderr) == (0, True, "")
    done = await node.ctl(
        "exec", "-e", "WHO=me", "-w", "/tmp", "-u", "5:6", container.id, "sh", "-c", "echo $WHO; pwd; id"
    )
    assert done.stdout == "me\n/tmp\nuid=5 gid=6\n"
    done = await node.ctl("exec", container.id, "/no/such/program")
    assert done.returncode == 125
    assert "/no/such/program" in done.stderr and len(done.stderr.splitlines()) == 1
    assert json.loads((await node.ctl("inspect", container.pod.id)).stdout)["containers"].keys() == {
        container.id
    }


async def test_a_command_in_a_terminal_has_its_size(node: OperatedNode) -> None:
    container = await node.running()
    master, terminal = pty.openpty()
    with open(master, "rb", buffering=0) as output, open(terminal, "rb+", buffering=0) as theirs:
        import termios

        termios.tcsetwinsize(theirs, (33, 44))
        done = await node.ctl(
            *(
                "exec",
                "-it",
                container.id,
                "sh",
                "-c",
                "until [ \"$(stty size 2>/dev/null)\" = '33 44' ]; do :; done; tty",
            ),
            **{"capture_output": False, "stdin": theirs, "stdout": theirs},
        )
        assert done.returncode == 0
        shown = b""
        async with asyncio.timeout(20):
            # It comes in parts.
            while not shown.endswith(b"/dev/pts/0\r\n"):
                shown += await asyncio.to_thread(output.read, 100)
        assert termios.tcgetattr(theirs)[3] & termios.ECHO


async def test_a_signal_goes_on_to_the_command(node: OperatedNode) -> None:
    container = await node.running()
    script = f"""
        said={node.daemon.base}/said
        $CTL exec {container.id} sh -c 'trap "exit 5" TERM; echo ready; while :; do sleep 0.1; done' >$said &
        until [ -s $said ]; do sleep 0.05; done
        kill -TERM $!; wait $!; echo $?
    """
    assert (await node.shell(script)).stdout == "5\n"


@pytest.mark.parametrize(("reaction", "code"), [("exit 5", 5), ("", 128 + signal.SIGKILL)])
async def test_a_container_is_stopped_and_waited_for(node: OperatedNode, reaction: str, code: int) -> None:
    pod = await node.pod()
    container = await pod.running(
        "sh", "-c", f"trap '{reaction}' TERM; echo ready; while :; do sleep 0.1; done"
    )
    await container.stdout.until(b"ready\n")
    waiting = asyncio.ensure_future(node.ctl("wait", container.id, "--json"))
    stopped = await node.ctl("stop", "-t", "1", container.id)
    assert (stopped.returncode, stopped.stdout) == (0, f"{container.id}\n")
    assert json.loads((await waiting).stdout) == [{"id": container.id, "exitCode": code}]
    assert (await node.ctl("wait", container.id)).stdout == f"{code}\n"
    removed = await node.ctl("rm", container.id)
    assert (removed.returncode, (await node.ctl("ps", "-c", "-q")).stdout) == (0, "")


async def test_a_wait_for_a_pod_outlives_the_daemon(node: OperatedNode) -> None:
    pod = await node.pod()
    waiting = asyncio.ensure_future(node.ctl("wait", pod.id))
    await node.restart(signal.SIGTERM)
    assert (await node.ctl("stop", pod.id)).returncode == 0
    assert (await waiting).stdout == "0\n"
    assert (await node.ctl("rm", pod.id)).returncode == 0
    assert (await node.ctl("ps", "-q")).stdout == ""


async def test_what_an_engine_believes_to_run_takes_force(node: OperatedNode) -> None:
    container = await node.running()
    for words in ("stop", container.id), ("stop", container.pod.id):
        refused = await node.ctl(*words)
        assert refused.returncode == 1
        assert "belongs to the engine" in refused.stderr and "--force" in refused.stderr
    assert "is running" in (await node.ctl("rm", container.pod.id)).stderr
    assert await container.state() == "running"
    assert (await node.ctl("stop", "--force", container.pod.id)).returncode == 0
    assert "belongs to the engine" in (await node.ctl("rm", container.pod.id)).stderr
    assert (await node.ctl("rm", "--force", container.pod.id)).returncode == 0
    assert (await node.ctl("ps", "-q")).stdout == ""


async def test_while_the_engine_cannot_be_asked_force_is_needed(node: OperatedNode) -> None:
    container = await node.running()
    await node.engine.stop()
    refused = await node.ctl("stop", container.id)
    assert refused.returncode == 1
    assert "nobody tells whose" in refused.stderr and len(refused.stderr.splitlines()) == 1


async def test_usage_is_measured(node: OperatedNode) -> None:
    container = await node.running()
    assert (
        await node.ctl("exec", container.id, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    ).returncode == 0
    (usage,) = json.loads((await node.ctl("stats", "--once", "--json")).stdout)
    assert (usage["id"], usage["processes"], usage["answers"]) == (container.id, 1, True)
    assert usage["cpuNs"] > 0 and usage["memoryBytes"] > 0
    table = (await node.ctl("stats", "--once", container.pod.id)).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["CONTAINER", container.id[:13]]


async def test_events_tell_a_pods_life_across_a_restart_of_the_daemon(node: OperatedNode, lab: Lab) -> None:
    first = await node.pod()
    told = lab.path(f"{node.daemon.base}/told")

    def events(of: str) -> list[str]:
        changes = [json.loads(line) for line in complete_lines(told.read_text())]
        return [change["event"] for change in changes if of in (change["pod"], change["container"])]

    with told.open("wb") as output:
        telling = lab.namespaces.spawn(
            node.command("events", "--existing", "--json"), output, node.daemon.environment
        )
    try:
        await until(lambda: "pod.ready" in events(first.id), 20, "what was there before")
        pod = await node.pod()
        container = await pod.running()
        await container.kill(signal.SIGKILL)
        await until(lambda: "container.exited" in events(container.id), 20, "the exit")
        await node.restart()
        await pod.connect()
        await container.delete()
        assert (await node.ctl("rm", "-f", pod.id)).returncode == 0
        await until(lambda: "pod.removed" in events(pod.id), 20, "the removal")
    finally:
        telling.stop(signal.SIGTERM)
    assert events(container.id) == [
        "container.created",
        "container.started",
        "container.exited",
        "container.removed",
    ]
    # Of a state that lasts for milliseconds only the outcome may be seen.
    lasting = {"pod.created", "pod.ready", "pod.removed"}
    assert [event for event in events(pod.id) if event in lasting] == [
        "pod.created",
        "pod.ready",
        "pod.removed",
    ]
