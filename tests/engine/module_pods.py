"""Pods of WebAssembly modules, for tests: what a module writes, how it ends, and its process seen from outside."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.engine.cri import EXITED, Cri, container_config, log_lines, matching, pod_config
from tests.engine.engine import Engine
from tests.engine.handlers import WASM
from tests.engine.images import MODULES
from tests.engine.namespaces import wait_until

_serial = itertools.count(1)


class Outcome(NamedTuple):
    """How a container has ended, and the lines that it has written to both outputs."""

    code: int
    lines: list[str]
    reason: str = ""


class ModulePod:
    """A pod whose containers are modules; its logs lie in a directory of its own."""

    def __init__(self, cri: Cri, logs: Path, config: api.PodSandboxConfig | None = None) -> None:
        self.cri = cri
        self.config = config or pod_config()
        self._logs = logs / f"pod-{next(_serial)}"
        self.config.log_directory = str(self._logs)
        self.id = cri.run_pod(self.config, WASM.name)

    def create(
        self,
        *command: str,
        name: str = "main",
        image: str = MODULES,
        mounts: Sequence[pb.Mount] = (),
        stdin: bool = False,
        tty: bool = False,
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        resources: api.LinuxContainerResources | None = None,
        **security: object,
    ) -> str:
        """Create a container and return its id. `security` are fields of its security context."""
        linux = matching(self.config, **security)
        if resources is not None:
            linux.resources.CopyFrom(resources)
        config = container_config(
            command,
            name=name,
            image=image,
            log_path=f"{name}.log",
            linux=linux,
            mounts=mounts,
            stdin=stdin,
            tty=tty,
            env=env,
            working_dir=working_dir,
        )
        return self.cri.create(self.id, config, self.config)

    def start(self, *command: str, name: str = "main", **settings: object) -> str:
        """Create and start a container, with the settings of `create`."""
        container = self.create(*command, name=name, **settings)  # type: ignore[arg-type]
        self.cri.start(container)
        return container

    def run(self, *command: str, name: str = "main", **settings: object) -> Outcome:
        """Run a container to its end."""
        return self.outcome(self.start(*command, name=name, **settings), name)

    def outcome(self, container: str, name: str = "main", timeout_s: float = 20) -> Outcome:
        """Wait for a container's end."""
        wait_until(lambda: self.cri.container(container).state == EXITED, timeout_s, "the container's end")
        status = self.cri.container(container)
        return Outcome(status.exit_code, self.cri.finished_log(self._logs / f"{name}.log"), status.reason)

    def lines(self, name: str = "main") -> list[str]:
        """What a container has written so far."""
        return log_lines(self._logs / f"{name}.log")

    def wait_for_line(self, line: str, name: str = "main") -> None:
        """Wait until a container has written a line."""
        log = self._logs / f"{name}.log"
        wait_until(lambda: log.exists() and line in log_lines(log), timeout_s=20, what=f"{line!r}")


def process_of(engine: Engine, container: str) -> Path:
    """The directory in procfs of a container's process, as seen from outside of the engine."""
    return engine.namespaces.root / f"proc/{engine.cri.pid(container)}"


def status_of(process: Path) -> dict[str, str]:
    """The fields of a process's status (proc_pid_status(5))."""
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cgroup_value(process: Path, v1: str, v2: str) -> str:
    """What a file of a process's cgroup says: `v1` is `<controller>/<file>`, `v2` the file of the unified hierarchy."""
    controller, _, file = v1.partition("/")
    unified = ""
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}/{file}").read_text().strip()
        unified = path if not controllers else unified
    return Path(f"/sys/fs/cgroup{unified}/{v2}").read_text().strip()
