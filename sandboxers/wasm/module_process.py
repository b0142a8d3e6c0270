"""What a forked process does until its module runs: it becomes the container, loads the module, waits for its start.

Order matters. The cgroup comes first, since by it a daemon finds what is half made. What needs the host's files (the
compiled code, the terminal, the gate) comes before the root is changed, what needs privileges before they are dropped,
and the filter last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from common.cgroup import Hierarchies, apply_limits, join_cgroup, make_cgroup
from common.errors import FailedPrecondition, Internal, InvalidArgument, SandboxdError
from common.linux.container_root import ContainerRoot
from common.linux.namespaces import join, join_process
from common.linux.oom_score import oom_score_adj, set_oom_score_adj
from common.linux.paths import open_in_root
from common.linux.privileges import drop_privileges, forbid_inspection, leave_session_keyring, set_name
from common.linux.sealed_file import sealed_file
from common.linux.seccomp import install_filter
from common.linux.terminal import make_controlling
from common.process.forking import close_all_but
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache, checksum_of
from sandboxers.wasm.engines import Engine, Invocation, Program
from sandboxers.wasm.files import CONFIG_FILE, ProcessFiles
from sandboxers.wasm.modules import HEADER_BYTES, Kind, kind_of, module_parts, open_module
from sandboxers.wasm.plan import (
    ContainerPlan,
    ProcessPlan,
    container_oom_score_adj,
    plan_container,
    plan_process,
)

_MACHINE = os.uname().machine

# What a specification mostly has (see `rehearse`).
_REHEARSAL = json.dumps(
    {
        "root": {"path": "/none", "readonly": True},
        "process": {"args": ["none"], "env": ["PATH=/"], "user": {"uid": 0, "additionalGids": [0]}},
        "mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/none", "type": "bind", "source": "/none", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts", "network", "pid")],
            "cgroupsPath": "/none",
            "resources": {"memory": {"limit": 1}, "pids": {"limit": 1}},
        },
    }
)


class Parts(NamedTuple):
    """What a fork server has ready for all its children."""

    engine: Engine
    cache: Cache
    hierarchies: Hierarchies
    default_profile: bytes


class Descriptors(NamedTuple):
    """What the daemon hands to a process: the channel of its launch, its streams, and for an exec a pidfd of the
    container's first process (else -1)."""

    channel: int
    stdin: int
    stdout: int
    stderr: int
    first_process: int


class ModuleProcess:
    """This process, on its way to a module."""

    def __init__(self, parts: Parts, message: Mapping[str, Any], fds: Descriptors) -> None:
        self._parts = parts
        self._directory = str(message["directory"])
        self._exec_id = str(message["exec"])
        self._files = ProcessFiles(self._directory, self._exec_id)
        self._console = str(message["console"])
        self._fds = fds
        self._channel = socket.socket(fileno=fds.channel)
        self._code: list[int] = []

    def run(self) -> NoReturn:
        """Become the container and run the module; ends this process."""
        code = 1
        try:
            program, invocation = self._prepare()
            self._announce()
            self._wait_for_start()
            code = program.run(invocation)
            sys.stderr.flush()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(self._channel.fileno(), launch.packed(launch.error_message(error)))
        finally:
            os._exit(code)

    # -- the steps ---------------------------------------------------------------------------------

    def _prepare(self) -> tuple[Program, Invocation]:
        spec = _read_json(f"{self._directory}/{CONFIG_FILE}")
        container = plan_container(spec)
        asked = _read_json(self._files.request) if self._exec_id else spec["process"]
        process = plan_process(asked, container_oom_score_adj(spec["process"], oom_score_adj()))
        self._enter_cgroup(container)
        set_oom_score_adj(process.oom_score_adj)
        self._open_gate()
        filter_ = self._filter(container.seccomp)
        if self._exec_id:
            program = self._load_beside(process)
            join_process(self._fds.first_process)
            os.close(self._fds.first_process)
        else:
            program = self._load_in_new_root(container, process)
        self._open_streams(process)
        # Whatever a library has opened on the way here is of the host.
        close_all_but({self._channel.fileno(), self._gate, *self._code})
        _enter_directory(process.cwd)
        os.umask(process.umask)
        for number, soft, hard in process.rlimits:
            resource.setrlimit(number, (soft, hard))
        leave_session_keyring()
        set_name(os.path.basename(process.args[0]))
        drop_privileges(process.uid, process.gid, process.groups)
        forbid_inspection()
        install_filter(filter_)
        return program, Invocation(process.args, process.env, container.memory_limit_bytes)

    def _enter_cgroup(self, container: ContainerPlan) -> None:
        if not container.cgroup_path:
            return
        cgroup = self._parts.hierarchies.at(container.cgroup_path)
        if not self._exec_id:
            make_cgroup(cgroup)
            apply_limits(cgroup, container.resources)
        join_cgroup(cgroup)

    def _load_in_new_root(self, container: ContainerPlan, process: ProcessPlan) -> Program:
        join(container.namespaces)
        root = ContainerRoot(container.rootfs)
        root.mount(container.mounts)
        self._open_terminal(process)
        program = self._load(root.fd, process)
        # As OCI runtimes do. What prevents it is told by who enters the directory.
        with contextlib.suppress(OSError):
            root.make_directory(process.cwd)
        root.enter(readonly=container.readonly)
        return program

    def _load_beside(self, process: ProcessPlan) -> Program:
        self._open_terminal(process)
        root_fd = _root_of(self._fds.first_process)
        try:
            return self._load(root_fd, process)
        finally:
            os.close(root_fd)

    def _load(self, root_fd: int, process: ProcessPlan) -> Program:
        try:
            return self._load_module(root_fd, process)
        except SandboxdError as error:
            raise type(error)(f"{process.args[0]}: {error}") from error

    def _load_module(self, root_fd: int, process: ProcessPlan) -> Program:
        module, kind = open_module(root_fd, process.args, process.cwd, process.env)
        try:
            wanted = self._missing_module(module, kind)
            # What the cache holds may be of an engine that was configured otherwise: it is made again then, once.
            with contextlib.suppress(ValueError):
                if (path := self._parts.cache.find(wanted.key)) is not None:
                    return self._map(path, kind)
            # Others may write to the file while it is compiled: what gives the key is what is compiled.
            with sealed_file(module_parts(module)) as copy:
                kind = kind_of(os.pread(copy, HEADER_BYTES, 0))
                copied = self._missing_module(copy, kind)
                # Mostly the same; then what counts is what the key has led to when it was looked up.
                return self._map(self._compiled(wanted if copied.key == wanted.key else copied, copy), kind)
        finally:
            os.close(module)

    def _missing_module(self, module: int, kind: Kind) -> launch.Missing:
        digest = checksum_of(module)
        key = f"{digest}-{kind}-{self._parts.engine.key}"
        return launch.Missing(launch.What.MODULE, key, digest, kind, self._parts.cache.target(key))

    def _map(self, path: str, kind: Kind) -> Program:
        program = self._parts.engine.load(path, kind)
        # An engine may keep the file open, to map a module's memory from it.
        self._code = _descriptors_of(path)
        return program

    def _filter(self, profile: Mapping[str, Any] | None) -> bytes:
        text = self._parts.default_profile if profile is None else packed_profile(profile)
        digest = hashlib.sha256(text).hexdigest()
        key = f"filter-{digest}-{_MACHINE}"
        missing = launch.Missing(launch.What.FILTER, key, digest, unusable=self._parts.cache.target(key))
        path = self._parts.cache.find(key)
        if path is None:
            with sealed_file([text]) as fd:
                path = self._compiled(missing, fd)
        with open(path, "rb") as file:
            return file.read()

    # -- streams and start -------------------------------------------------------------------------

    def _open_gate(self) -> None:
        # Also for writing, so that nothing but a byte ends the wait.
        self._gate = os.open(self._files.gate, os.O_RDWR | os.O_CLOEXEC)

    def _wait_for_start(self) -> None:
        self._channel.close()
        os.read(self._gate, 1)
        os.close(self._gate)

    def _open_terminal(self, process: ProcessPlan) -> None:
        if not self._console:
            return
        master, slave = os.openpty()
        os.fchown(slave, process.uid, -1)
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(self._console)
            socket.send_fds(console, [b"terminal"], [master])
        os.close(master)
        for stream in self._fds[1:4]:
            os.dup2(slave, stream)
        os.close(slave)

    def _open_streams(self, process: ProcessPlan) -> None:
        for number, stream in enumerate((self._fds.stdin, self._fds.stdout, self._fds.stderr)):
            os.dup2(stream, number)
            os.close(stream)
        if process.terminal:
            make_controlling(0)

    def _announce(self) -> None:
        """Say that the module can be run, and wait until the daemon has that on record.

        With the only system calls that every filter allows.
        """
        os.write(self._channel.fileno(), launch.packed({"ready": True}))
        if not os.read(self._channel.fileno(), launch.PACKET_BYTES):
            os._exit(1)

    def _compiled(self, missing: launch.Missing, source: int) -> str:
        """Let the daemon have it made; return its path."""
        launch.send(self._channel, {"missing": missing._asdict()}, [source])
        received = launch.receive(self._channel)
        if received is None:
            os._exit(1)  # the daemon is gone, and with it whoever knows of us
        launch.raise_error(received.message)
        path = self._parts.cache.find(received.message["key"])
        if path is None:
            raise Internal(f"{missing.key} has been compiled, and vanished from the cache")
        return path


def rehearse(parts: Parts) -> None:
    """Go through what needs no container yet: the pages that this writes to are copied before somebody waits for it.

    It saves a launch about 1.3 of 7 ms.
    """
    spec = json.loads(_REHEARSAL)
    plan_container(spec)
    plan_process(spec["process"])
    packed_profile(spec)
    parts.cache.find("none")
    cgroup = parts.hierarchies.at("/none")
    for controller in cgroup.controllers:
        cgroup.directory(controller)
    root_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(open_in_root(root_fd, "/", os.O_PATH))
    os.close(root_fd)
    parts.engine.rehearse()


def packed_profile(profile: Mapping[str, Any]) -> bytes:
    """Return a seccomp profile as the text that its filter is made from and known by."""
    return json.dumps(profile, separators=(",", ":")).encode()


def _read_json(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        document: dict[str, Any] = json.loads(file.read())
    return document


def _enter_directory(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise InvalidArgument(f"the working directory {cwd} cannot be entered: {error.strerror}") from error


def _descriptors_of(path: str) -> list[int]:
    """Return our open descriptors of a file."""
    wanted, found = os.stat(path), []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            if os.path.samestat(os.fstat(int(name)), wanted):
                found.append(int(name))
    return found


def _root_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith(b"Pid:")), -1)
    try:
        return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise FailedPrecondition("the container's first process has ended") from None
