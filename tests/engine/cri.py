"""A small client of the CRI, enough for demo, tests and benchmarks: grpc straight to the engine's socket."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from proto.gen.runtime.v1 import service_pb2_grpc as stubs
from tests.engine.daemons import has_open, listener_of
from tests.engine.images import BUSYBOX
from tests.engine.namespaces import wait_until
from tests.lines import complete_lines
from tests.node import BOOTS, SLOWER

TIMEOUT_S = 60.0 * SLOWER
NODE = api.NamespaceMode.NODE
CONTAINER = api.NamespaceMode.CONTAINER
READY = pb.PodSandboxState.SANDBOX_READY
RUNNING = pb.ContainerState.CONTAINER_RUNNING
EXITED = pb.ContainerState.CONTAINER_EXITED
_LOG_LINE = re.compile(r"\S+ (stdout|stderr) ([FP])\S* ?(.*)")
_serial = itertools.count(1)


class Cri:
    """One connection to an engine. Every method raises grpc.RpcError as the engine answered it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        # One pool of sub-channels per object: a test must not reuse the connection of an engine that is gone.
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self.runtime = stubs.RuntimeServiceStub(self._channel)
        self.images = stubs.ImageServiceStub(self._channel)

    def run_pod(self, config: api.PodSandboxConfig, handler: str) -> str:
        """Start a pod; as a kubelet does, once more where the guest of a machine may not come up (`BOOTS`)."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        for left in reversed(range(BOOTS)):
            try:
                answer: pb.RunPodSandboxResponse = self.runtime.RunPodSandbox(request, timeout=TIMEOUT_S)
                break
            except grpc.RpcError as error:
                if not left or "has not announced itself" not in str(error):
                    raise
                print(f"booted again: {error}")
        return answer.pod_sandbox_id

    def create(self, pod: str, config: pb.ContainerConfig, pod_config: api.PodSandboxConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=pod_config)
        answer: pb.CreateContainerResponse = self.runtime.CreateContainer(request, timeout=TIMEOUT_S)
        return answer.container_id

    def start(self, container: str) -> None:
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=container), timeout=TIMEOUT_S)

    def exec(self, container: str, command: Sequence[str], timeout_s: int = 50) -> pb.ExecSyncResponse:
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        answer: pb.ExecSyncResponse = self.runtime.ExecSync(request, timeout=TIMEOUT_S)
        return answer

    def container(self, container: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container)
        answer: pb.ContainerStatusResponse = self.runtime.ContainerStatus(request, timeout=TIMEOUT_S)
        return answer.status

    def pid(self, container: str) -> int:
        """The pid of a container's first process in the engine's PID namespace."""
        request = pb.ContainerStatusRequest(container_id=container, verbose=True)
        answer: pb.ContainerStatusResponse = self.runtime.ContainerStatus(request, timeout=TIMEOUT_S)
        return int(json.loads(answer.info["info"])["pid"])

    def update(self, container: str, resources: api.LinuxContainerResources) -> None:
        request = pb.UpdateContainerResourcesRequest(container_id=container, linux=resources)
        self.runtime.UpdateContainerResources(request, timeout=TIMEOUT_S)

    def pod(self, pod: str) -> pb.PodSandboxStatus:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
        answer: pb.PodSandboxStatusResponse = self.runtime.PodSandboxStatus(request, timeout=TIMEOUT_S)
        return answer.status

    def stats(self, container: str) -> pb.ContainerStats:
        request = pb.ContainerStatsRequest(container_id=container)
        answer: pb.ContainerStatsResponse = self.runtime.ContainerStats(request, timeout=TIMEOUT_S)
        return answer.stats

    def pods(self) -> Sequence[pb.PodSandbox]:
        answer: pb.ListPodSandboxResponse = self.runtime.ListPodSandbox(
            pb.ListPodSandboxRequest(), timeout=TIMEOUT_S
        )
        return answer.items

    def finished_log(self, path: Path) -> list[str]:
        """The lines of a container that has ended: the engine tells that before it has written the last of them."""
        engine = listener_of(self._socket)
        wait_until(lambda: not has_open(engine, path), timeout_s=20, what=f"the end of {path}")
        return log_lines(path)

    def stop_container(self, container: str, grace_s: int = 0) -> None:
        request = pb.StopContainerRequest(container_id=container, timeout=grace_s)
        self.runtime.StopContainer(request, timeout=TIMEOUT_S)

    def remove_container(self, container: str) -> None:
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container), timeout=TIMEOUT_S)

    def stop_pod(self, pod: str) -> None:
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S)

    def remove_pod(self, pod: str) -> None:
        self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT_S)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pod_config(
    name: str = "pod",
    *,
    host_network: bool = True,
    log_directory: str = "",
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
    namespaces: api.NamespaceOption | None = None,
    cgroup_parent: str = "",
) -> api.PodSandboxConfig:
    """A pod's configuration, like the kubelet's; its uid makes the name unique within this process.

    `namespaces` defaults to what the kubelet asks for: every container has a PID namespace of its own.
    """
    options = namespaces if namespaces is not None else api.NamespaceOption(pid=CONTAINER)
    if host_network:
        options.network = NODE
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, namespace="default", uid=f"{os.getpid()}-{next(_serial)}"),
        hostname=hostname,
        log_directory=log_directory,
        linux=api.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            sysctls=dict(sysctls or {}),
            security_context=api.LinuxSandboxSecurityContext(namespace_options=options),
        ),
    )


def container_config(
    command: Sequence[str] = ("sleep", "1000000"),
    *,
    name: str = "main",
    image: str = BUSYBOX,
    log_path: str = "",
    linux: pb.LinuxContainerConfig | None = None,
    mounts: Sequence[pb.Mount] = (),
    stdin: bool = False,
    tty: bool = False,
    env: Mapping[str, str] | None = None,
    working_dir: str = "",
) -> pb.ContainerConfig:
    """A container's configuration; pods with other namespace modes than the default need `matching` too."""
    if linux is None:
        own = api.NamespaceOption(pid=CONTAINER)
        linux = pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(namespace_options=own)
        )
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=image),
        command=command,
        log_path=log_path,
        linux=linux,
        mounts=mounts,
        stdin=stdin,
        tty=tty,
        envs=[pb.KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()],
        working_dir=working_dir,
    )


def log_lines(path: Path, stream: str = "") -> list[str]:
    """The lines that a container has written to both outputs or one, from the log that containerd has made of them.

    The format is the kubelet's: `<time> <stream> <F or P> <text>`, P for a part of a line.
    """
    lines, partial = [], ""
    for line in complete_lines(path.read_text(errors="replace")):
        found = _LOG_LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path}: no line of a container's log: {line!r}")
        if stream in ("", found[1]):
            partial += found[3]
            if found[2] == "F":
                lines.append(partial)
                partial = ""
    return lines


def matching(pod: api.PodSandboxConfig, **context: object) -> pb.LinuxContainerConfig:
    """What a container must say to share its pod's namespaces, as the kubelet repeats it per container."""
    options = pod.linux.security_context.namespace_options
    security = pb.LinuxContainerSecurityContext(namespace_options=options, **context)  # type: ignore[arg-type]
    return pb.LinuxContainerConfig(security_context=security)
