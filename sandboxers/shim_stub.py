"""The runtime binary `containerd-shim-sandboxd-v1` of our handlers: it answers containerd and does nothing.

A handler with `runtime_type = "io.containerd.sandboxd.v1"` needs an executable of that name although its pods
belong to a daemon. containerd executes it only in these ways (contract, section 1.5):

    -info                  on stdin an Any with the handler's options, or nothing: print a RuntimeInfo
    -id ID ... delete      after a restart of containerd, on every deletion of a task: print a DeleteResponse
    ... start              never, unless the handler is misconfigured: explain and fail

`delete` runs once per container and holds up its removal: it loads nothing beyond the interpreter's core.
"""

from __future__ import annotations

import sys
import time

RUNTIME_NAME = "io.containerd.sandboxd.v1"
FEATURES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
RUNTIME_VARIABLE = "SANDBOXD_OCI_RUNTIME"
USUAL_RUNTIMES = ("crun", "runc")
FEATURES_TIMEOUT_S = 3.0
SIGKILLED = 137

# fmt: off
MOUNT_OPTIONS = (
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "noatime", "nodev",
    "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime",
    "remount", "ro", "rprivate", "rshared", "rslave", "runbindable", "rw", "shared", "slave", "strictatime",
    "suid", "sync", "tmpcopyup", "unbindable",
)
# fmt: on

START_REFUSED = f"""\
containerd-shim-sandboxd-v1: refusing to start: pods of {RUNTIME_NAME} belong to a running sandboxd.
containerd executes this binary only if its handler names no sandboxer. In containerd's configuration set
`sandboxer = "<type>"` in the table of this runtime handler and declare that name under [proxy_plugins]
with `type = "sandbox"` and the address of the daemon's socket.
"""


def main() -> int:
    """Act on the command line as containerd composes it; returns the exit status."""
    arguments = sys.argv[1:]
    if "-info" in arguments or "--info" in arguments:
        return _print_info()
    match arguments[-1:]:
        case ["delete"]:
            _write(delete_response(time.time_ns()))
            return 0
        case ["start"]:
            return _fail(START_REFUSED)
        case _:
            return _fail("usage: containerd-shim-sandboxd-v1 -info | [FLAGS] delete\n", status=2)


def delete_response(exited_at_ns: int) -> bytes:
    """Return containerd.task.v2.DeleteResponse{exit_status: 137, exited_at} as bytes.

    Nothing is known here about the process, which the daemon has reaped: the answer is the one for SIGKILL.
    Encoded by hand, for loading protobuf would take three times as long as all the rest.
    """
    seconds, nanos = divmod(exited_at_ns, 10**9)
    timestamp = b"\x08" + _varint(seconds) + b"\x10" + _varint(nanos)
    return b"\x10" + _varint(SIGKILLED) + b"\x1a" + _varint(len(timestamp)) + timestamp


def runtime_info(options: bytes) -> bytes:
    """Return containerd.types.RuntimeInfo, serialized, with the features of the configured OCI runtime.

    `options` is a serialized Any, or empty. A runtime named there (BinaryName), else in SANDBOXD_OCI_RUNTIME,
    must exist; with neither the first usual one answers. Raises InvalidArgument for malformed options,
    NotFound, PermissionDenied or OSError for a runtime that cannot be executed, and DeadlineExceeded for one
    that does not answer.
    """
    import asyncio
    import os

    from google.protobuf.any_pb2 import Any

    from proto.gen.containerd.types.introspection_pb2 import RuntimeInfo, RuntimeVersion

    named = _binary_name(options) or os.environ.get(RUNTIME_VARIABLE, "")
    features = asyncio.run(_features(named))
    return RuntimeInfo(
        name=RUNTIME_NAME,
        version=RuntimeVersion(version=_version()),
        features=Any(type_url=FEATURES_TYPE_URL, value=features),
    ).SerializeToString()


def builtin_features(idmap: bool) -> bytes:
    """Return an OCI features document, JSON, for a runtime that cannot print its own.

    It claims what every runtime since specification 1.0 does. `idmap` says whether mounts can be mapped:
    containerd refuses pods in user namespaces with volumes without it.
    """
    import json

    document = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.0.2",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": list(MOUNT_OPTIONS),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": True, "v2": True, "systemd": True},
            "mountExtensions": {"idmap": {"enabled": idmap}},
        },
    }
    return json.dumps(document).encode()


def _print_info() -> int:
    from common.errors import SandboxdError

    try:
        _write(runtime_info(_read_options()))
    except (SandboxdError, OSError) as error:
        return _fail(f"containerd-shim-sandboxd-v1: -info: {error}\n")
    return 0


async def _features(named: str) -> bytes:
    from contextlib import closing

    from common.errors import NotFound
    from common.process.exits import ExitWatcher
    from common.process.spawn import CAPTURE, run

    with closing(ExitWatcher()) as watcher:
        for binary in (named,) if named else USUAL_RUNTIMES:
            argv = [binary, "features"]
            try:
                done = await run(argv, watcher=watcher, stdout=CAPTURE, timeout_s=FEATURES_TIMEOUT_S)
            except NotFound:
                if named:
                    raise
                continue
            if done.status.code == 0 and _is_features(done.stdout):
                return done.stdout
            # crun had idmapped mounts long before it had the command; of an old runc that is not true.
            return builtin_features(idmap=binary.rpartition("/")[2].startswith("crun"))
    # No runtime on the host: the containers run in guests, and the daemon maps their mounts.
    return builtin_features(idmap=True)


def _is_features(output: bytes) -> bool:
    """Whether it is a features document; containerd dereferences `linux` unchecked."""
    import json

    try:
        document = json.loads(output)
    except ValueError:
        return False
    return isinstance(document, dict) and isinstance(document.get("linux"), dict)


def _binary_name(options: bytes) -> str:
    if not options:
        return ""
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import DecodeError

    from common.errors import InvalidArgument
    from proto.gen.containerd.runc.v1.oci_pb2 import Options

    try:
        wrapped = Any.FromString(options)
        if wrapped.type_url.rpartition("/")[2] == Options.DESCRIPTOR.full_name:
            return Options.FromString(wrapped.value).binary_name
    except DecodeError as error:
        raise InvalidArgument(f"stdin holds no runtime options: {error}") from error
    return ""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sandboxd")
    except PackageNotFoundError:
        return ""


def _read_options() -> bytes:
    # A closed descriptor 0 makes stdin None; a terminal means that a person asks.
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return sys.stdin.buffer.read()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _write(message: bytes) -> None:
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()


def _fail(text: str, status: int = 1) -> int:
    sys.stderr.write(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
