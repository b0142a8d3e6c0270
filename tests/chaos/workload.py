"""Pods as a kubelet runs them: what is unavailable is tried again, what runs is held to its word."""

import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc

from common.process.exits import UNKNOWN_EXIT_CODE
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.kubelet import AGAIN_S, Kubelet
from tests.engine.cri import EXITED, READY, container_config, log_lines, pod_config
from tests.engine.handlers import Programs
from tests.engine.namespaces import wait_until

# What an OCI runtime says into the container's own stream when the daemon whose descriptors it joins by path dies
# under it; the container is then made again, on the same stream. Counted, since there should be none.
_RUNTIMES_OWN = re.compile(r"open `/proc/\d+/fd/\d+`: No such file or directory")
_serial = itertools.count(1)
strays: list[str] = []
"""The containers in whose logs there is a line of the runtime's, once for each."""


class Container(NamedTuple):
    """A started container and where its log is."""

    id: str
    log: Path


class Pod:
    """A pod that runs. Calls answered "unavailable" are repeated; every other error is raised."""

    def __init__(self, kubelet: Kubelet, *, host_network: bool = True) -> None:
        """:param host_network: whether it lives in the node's network, where its handler's pods can."""
        self.kubelet = kubelet
        host_network = host_network and kubelet.handler.has_host_network
        self.programs = kubelet.handler.programs
        self.logs = kubelet.directory / f"logs-{next(_serial)}"
        self.config = pod_config(host_network=host_network, log_directory=str(self.logs))
        self.id = self._run()

    def _run(self) -> str:
        cri = self.kubelet.cri
        deadline = time.monotonic() + self.kubelet.handler.start_patience_s
        for attempt in itertools.count():
            self.config.metadata.attempt = attempt
            try:
                return cri.run_pod(self.config, self.kubelet.handler.name)
            except grpc.RpcError as error:
                self.kubelet.refusal(error)
            if time.monotonic() > deadline:
                break
            # gRPC takes its time until it connects again.
            time.sleep(0.25)
            # What the engine still has of a pod that did not start, the kubelet removes before it tries again.
            for pod in cri.pods():
                if pod.metadata.uid == self.config.metadata.uid:
                    self.id = pod.id
                    self.remove()
        raise AssertionError(f"the pod could not be run: {self.kubelet.told}")

    def run(
        self,
        *command: str,
        name: str = "main",
        stdin: bool = False,
        tty: bool = False,
        mounts: Sequence[pb.Mount] = (),
    ) -> Container:
        """Create and start a container."""
        cri = self.kubelet.cri
        for attempt in range(20):
            log = f"{name}-{attempt}.log"
            config = container_config(
                command,
                name=name,
                image=self.programs.image,
                log_path=log,
                stdin=stdin,
                tty=tty,
                mounts=mounts,
            )
            config.metadata.attempt = attempt
            container = self.kubelet.insist(lambda config=config: cri.create(self.id, config, self.config))  # type: ignore[misc]
            try:
                cri.start(container)
            except grpc.RpcError as error:
                self.kubelet.refusal(error)
                self.kubelet.insist(lambda container=container: cri.remove_container(container))  # type: ignore[misc]
            else:
                return Container(container, self.logs / log)
        raise AssertionError(f"the container {name} could not be started: {self.kubelet.told}")

    def writer(self, name: str = "writer") -> Container:
        """A container that writes numbered lines until it is stopped, see `end_writer`."""
        return self.run(*self.programs.lines(), name=name)

    def end_writer(self, writer: Container) -> int:
        """Stop a writer, which must end as it should with a complete log; returns how many lines it has written."""
        wait_until(
            lambda: "line 0" in writer.log.read_text(errors="replace"),
            timeout_s=AGAIN_S,
            what=f"the first line of {writer.id}",
            interval_s=0.05,
        )
        code = self.stop(writer)
        assert code == self.programs.stopped_code
        return expect_lines(writer, self.programs)

    def exec(self, container: Container, *command: str) -> pb.ExecSyncResponse:
        return self.kubelet.insist(lambda: self.kubelet.cri.exec(container.id, command))

    def expect_exec(self, container: Container, code: int) -> None:
        """Run a command in a container, which must have its output and exit code."""
        answer = self.exec(container, *self.programs.say("out", "err", code))
        if answer.exit_code == UNKNOWN_EXIT_CODE and self.kubelet.may_forget_exec_codes:
            self.kubelet.forgotten_exec_codes += 1
            answer.exit_code = code
        assert (answer.exit_code, answer.stdout, answer.stderr) == (code, b"out\n", b"err\n"), answer

    def stop(self, container: Container, grace_s: int = 10) -> int:
        """Stop a container and return its exit code."""
        self.kubelet.insist(lambda: self.kubelet.cri.stop_container(container.id, grace_s))
        return self.exit_code(container)

    def status(self, container: Container) -> pb.ContainerStatus:
        return self.kubelet.insist(lambda: self.kubelet.cri.container(container.id))

    def exit_code(self, container: Container) -> int:
        """Wait for a container's end and return its exit code."""
        self.wait(container)
        return self.status(container).exit_code

    def wait(self, container: Container, timeout_s: float = AGAIN_S) -> None:
        wait_until(
            lambda: self.status(container).state == EXITED,
            timeout_s=timeout_s,
            what="the container's end",
            interval_s=0.05,
        )

    def remove_container(self, container: Container) -> None:
        self.kubelet.insist(lambda: self.kubelet.cri.remove_container(container.id))

    def remove(self) -> None:
        """Stop and remove the pod with all that is in it."""
        self.kubelet.insist(lambda: self.kubelet.cri.stop_pod(self.id))
        self.kubelet.insist(lambda: self.kubelet.cri.remove_pod(self.id))

    @property
    def is_ready(self) -> bool:
        status = self.kubelet.insist(lambda: self.kubelet.cri.pod(self.id))
        return bool(status.state == READY)


def expect_lines(writer: Container, programs: Programs) -> int:
    """Fail unless the log of a writer that has ended is complete: every line once and in order.

    Returns how many lines there are. Without a count at their end, there must be some, of which none may be missing
    before the last one.
    """
    if programs.counts_lines:
        wait_until(
            lambda: "end " in writer.log.read_text(errors="replace")[-80:],
            timeout_s=AGAIN_S,
            what=f"the end of the log of {writer.id}, which is {writer.log.stat().st_size} bytes long",
        )
    lines = [line for line in log_lines(writer.log) if not _RUNTIMES_OWN.fullmatch(line)]
    strays.extend([writer.id] * (len(log_lines(writer.log)) - len(lines)))
    if programs.counts_lines:
        end = lines.pop()
        assert end == f"end {len(lines)}"
    else:
        assert lines, f"the log of {writer.id} is empty"
    assert lines == [f"line {number}" for number in range(len(lines))], _difference(lines)
    return len(lines)


def _difference(lines: list[str]) -> str:
    number = next(number for number, line in enumerate(lines) if line != f"line {number}")
    return f"at line {number}: {lines[max(0, number - 2) : number + 3]}"
