"""A private containerd, and optionally a sandboxer next to it, in namespaces of their own."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc

from proto.gen.runtime.v1 import service_pb2 as pb
from sandboxers.isolation import load_config
from tests.engine.cri import Cri
from tests.engine.daemons import daemon_below, listener_of
from tests.engine.handlers import QEMU, RUNC, Handler
from tests.engine.images import CHECKOUT, PAUSE
from tests.engine.namespaces import Daemon, Namespaces, wait_until

# Where Debian installs the OCI runtimes, and the recent ones that can take their place.
RUNTIMES = {"crun": Path("/usr/bin/crun")}
RECENT_RUNTIMES = CHECKOUT / ".cache/runtimes"
ENGINE_PROGRAMS = CHECKOUT / ".cache/engine/usr/bin"
DROP_INS = CHECKOUT / "configs/containerd/*.toml"
PYTHON = CHECKOUT / ".venv/bin/python"
READY_LIMIT_S = 30.0
REGISTRY_PORT = 5000  # in the engine's own network namespace
STOCK_RUNC = "runc"
STOCK_CRUN = "crun"
OURS = RUNC.name
OURS_IN_QEMU = QEMU.name

CONFIG = """\
version = 3
imports = ["{drop_ins}"]

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{directory}/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
  # Root may lack CAP_SYS_RESOURCE here.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{directory}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "{default}"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "/usr/sbin/runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
        BinaryName = "/usr/bin/crun"
"""

POD_NETWORK = """\
{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"""


class Engine:
    """containerd with the handlers `runc` and `crun` (stock shim) and one of ours.

    Everything it makes lies in private namespaces and one temporary directory, which `close` removes.
    `runtimes` says which crun and runc it sees: the recent ones of scripts/fetch-runtimes or the system's.
    Raises RuntimeError with the end of the logs if a daemon does not come up.
    """

    def __init__(
        self,
        ours: Handler = RUNC,
        *,
        runtimes: str = "recent",
        default_handler: str = STOCK_RUNC,
        keep: bool = False,
    ) -> None:
        if not (ENGINE_PROGRAMS / "containerd").exists():
            raise RuntimeError("no containerd: run scripts/fetch-engine")
        for layout in ours.layouts:
            if not (layout / "index.json").exists():
                raise RuntimeError(f"no images: run scripts/build-images {' '.join(ours.build)}")
        if runtimes == "recent" and not (RECENT_RUNTIMES / "crun").exists():
            raise RuntimeError("no recent crun and runc: run scripts/fetch-runtimes")
        self.ours = ours
        self._keep = keep
        # Short, as unix socket paths inside it are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="sandboxd-engine-"))
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        (self.directory / "cni").mkdir()
        (self.directory / "cni/10-pods.conflist").write_text(POD_NETWORK)
        (self.directory / "certs.d").mkdir()
        self._config = self.directory / "containerd.toml"
        self._config.write_text(
            CONFIG.format(drop_ins=DROP_INS, pause=PAUSE, directory=self.directory, default=default_handler)
        )
        self._containerd: Daemon | None = None
        self._sandboxer: Daemon | None = None
        self._sandboxer_command: list[str] = []
        self._sandboxer_socket = Path()
        self._sandboxer_env: dict[str, str] = {}
        self._supervised = False
        self._others: list[Daemon] = []
        self._cri: Cri | None = None
        self.namespaces = Namespaces(self.directory, self.directory.name)
        if runtimes == "recent":
            for name, path in RUNTIMES.items():
                self.namespaces.run(["mount", "--bind", str(RECENT_RUNTIMES / name), str(path)])

    # ---------------------------------------------------------------- containerd

    def start(self, layouts: Sequence[Path] = ()) -> Self:
        """Start containerd, wait until the CRI answers, import the images of the layouts, or else the handler's."""
        self.start_containerd()
        for layout in layouts or self.ours.layouts:
            self.import_images(layout)
        return self

    def start_containerd(self) -> None:
        path = f"{ENGINE_PROGRAMS}:{os.environ.get('PATH', '/bin')}:/usr/sbin:/sbin"
        with (self.logs / "containerd.log").open("ab") as log:
            self._containerd = self.namespaces.spawn(
                ["containerd", "--config", str(self._config)], log, {**os.environ, "PATH": path}
            )
        address = self.namespaces.root / "run/containerd/containerd.sock"
        self._wait_for(self._containerd, address.is_socket, "containerd")
        self._cri = Cri(address)
        self._wait_for(self._containerd, self._cri_answers, "containerd's CRI")

    def stop_containerd(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop containerd alone: containers and sandboxer live on."""
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        if self._containerd is not None:
            self._containerd.stop(number)
            self._containerd = None

    def restart_containerd(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop_containerd(number)
        self.start_containerd()

    @property
    def cri(self) -> Cri:
        """The client of the running containerd; a restart replaces it."""
        if self._cri is None:
            raise RuntimeError("containerd does not run")
        return self._cri

    @property
    def containerd_pid(self) -> int:
        if self._containerd is None:
            raise RuntimeError("containerd does not run")
        return self._containerd.pid

    def import_images(self, layout: Path) -> None:
        """Import every image of an OCI layout under all its names."""
        with subprocess.Popen(["tar", "-C", str(layout), "-cf", "-", "."], stdout=subprocess.PIPE) as archive:
            self.ctr(["images", "import", "-"], stdin=archive.stdout)
        if archive.returncode != 0:
            raise RuntimeError(f"{layout} cannot be read")

    def ctr(self, arguments: Sequence[str], stdin: IO[bytes] | None = None) -> str:
        """Run containerd's own client in the CRI's namespace; raises CalledProcessError."""
        command = [str(ENGINE_PROGRAMS / "ctr"), "--namespace", "k8s.io", *arguments]
        return self.namespaces.run(command, stdin=stdin or subprocess.DEVNULL).stdout

    def serve_images(self, layouts: Sequence[Path]) -> None:
        """Make PullImage work for the images of the layouts, under their own names."""
        hosts = self.directory / "certs.d/_default/hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(f'[host."http://127.0.0.1:{REGISTRY_PORT}"]\n  capabilities = ["pull", "resolve"]\n')
        command = [str(PYTHON), "-m", "tests.engine.registry", str(REGISTRY_PORT), *map(str, layouts)]
        with (self.logs / "registry.log").open("ab") as log:
            self._others.append(
                self.namespaces.spawn(command, log, {**os.environ, "PYTHONPATH": str(CHECKOUT)})
            )

    # ---------------------------------------------------------------- sandboxer

    def start_sandboxer(
        self,
        config: Path | None = None,
        *,
        python: Path = PYTHON,
        env: Mapping[str, str] | None = None,
        supervise: bool = False,
        manager: Sequence[str] = (),
    ) -> None:
        """Start a sandboxer, that of our handler if no configuration is given, and wait until it listens.

        It may run below a supervisor.

        `manager` is a command that starts the one behind it as its child, and starts it again.
        """
        self._supervised = supervise or bool(manager)
        supervisor = ["--supervise"] if supervise else []
        config = config or self.ours.config
        self._sandboxer_socket = Path(load_config(str(config))[1].socket.removeprefix("/"))
        self._sandboxer_command = [
            *manager,
            str(python),
            "-m",
            "sandboxers",
            *supervisor,
            "--config",
            str(config),
        ]
        self._sandboxer_env = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(env or {})}
        self._spawn_sandboxer()

    def stop_sandboxer(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the sandboxer alone; returns its exit status."""
        if self._sandboxer is None:
            raise RuntimeError("the sandboxer does not run")
        status = self._sandboxer.stop(number)
        self._sandboxer = None
        return status

    def restart_sandboxer(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop_sandboxer(number)
        self._spawn_sandboxer()

    def restart_after_death(self) -> None:
        """Start the sandboxer again as it was started before."""
        self._spawn_sandboxer()

    @property
    def sandboxer_socket(self) -> Path:
        """Where the sandboxer listens, as seen from outside."""
        return self.namespaces.root / self._sandboxer_socket

    @property
    def sandboxer_pid(self) -> int:
        """Its pid as seen from outside; the supervisor's if there is one."""
        if self._sandboxer is None:
            raise RuntimeError("the sandboxer does not run")
        return self._sandboxer.pid

    @property
    def daemon_pid(self) -> int:
        """The pid of the process that serves, which is another than `sandboxer_pid` under a supervisor.

        Raises ProcessLookupError while there is none.
        """
        pid = self.sandboxer_pid
        return daemon_below(pid) if self._supervised else pid

    def kill_daemon(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon, not its supervisor, and wait until it is gone."""
        pidfd = os.pidfd_open(self.daemon_pid)
        try:
            signal.pidfd_send_signal(pidfd, number)
            if not select.select([pidfd], [], [], 20)[0]:
                raise RuntimeError(f"the daemon has not ended\n{self.evidence()}")
        finally:
            os.close(pidfd)

    def signal_sandboxer(self, number: signal.Signals) -> None:
        """Send a signal to the sandboxer; to the supervisor if there is one."""
        os.kill(self.sandboxer_pid, number)

    def kill_sandboxer(self) -> None:
        """End supervisor and daemon at once: nobody is left who keeps anything."""
        daemon = os.pidfd_open(self.daemon_pid)
        try:
            # The supervisor first, or it would start another.
            self.stop_sandboxer(signal.SIGKILL)
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        except ProcessLookupError:
            pass  # without a supervisor they are one
        finally:
            os.close(daemon)

    def wait_for_daemon(self) -> None:
        """Wait until a daemon listens, be it the first or one that the supervisor has started again."""
        if self._sandboxer is None:
            raise RuntimeError("the sandboxer does not run")
        self._wait_for(self._sandboxer, self._daemon_listens, "the sandboxer")

    def _daemon_listens(self) -> bool:
        try:
            return listener_of(self.sandboxer_socket) == self.daemon_pid
        except ProcessLookupError:
            return False

    def _spawn_sandboxer(self) -> None:
        with (self.logs / "sandboxer.log").open("ab") as log:
            self._sandboxer = self.namespaces.spawn(self._sandboxer_command, log, self._sandboxer_env)
        self.wait_for_daemon()

    # ---------------------------------------------------------------- end and evidence

    def evidence(self, lines: int = 60) -> str:
        """The end of every log, for the message of a failed test."""
        parts = []
        for log in sorted(self.logs.glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {log.name}", *text]))
        return "\n".join(parts)

    def close(self) -> None:
        """End everything and remove it. Idempotent."""
        if self._cri is not None:
            self._cri.close()
            self._cri = None
        self.namespaces.close()
        for daemon in (self._containerd, self._sandboxer, *self._others):
            if daemon is not None:
                daemon.stop(signal.SIGKILL)
        self._containerd = self._sandboxer = None
        self._others.clear()
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cri_answers(self) -> bool:
        try:
            self.cri.runtime.Status(pb.StatusRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return True

    def _wait_for(self, daemon: Daemon, ready: Callable[[], bool], what: str) -> None:
        try:
            wait_until(lambda: daemon.returncode is not None or ready(), timeout_s=READY_LIMIT_S, what=what)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self.evidence()}") from None
        if daemon.returncode is not None:
            raise RuntimeError(f"{what} ended with status {daemon.returncode}\n{self.evidence()}")
