"""Requests that are malformed or refused: the right code, a text that names what was wrong and with what."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from common.errors import Code
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Controller, Pod, refused
from tests.integration.daemon.conftest import MakePod
from tests.integration.daemon.lab import Daemon, Lab

MALFORMED_IDS = ["", ".", "..", "../x", "a/b", "-rf", ".hidden", "a b", "a\nb", "ä", "x" * 77, "a\x00b"]


def _any(value: object) -> AnyMessage:
    return AnyMessage(value=json.dumps(value).encode())


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", MALFORMED_IDS)
async def test_a_malformed_sandbox_id_is_refused(controller: Controller, bad: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "sandbox id", repr(bad)):
        await controller("Create", bad)
    with refused(Code.NOT_FOUND, repr(bad)):
        await controller("Start", bad)


@pytest.mark.parametrize("bad", MALFORMED_IDS)
async def test_a_malformed_container_or_exec_id_is_refused(pod: Pod, bad: str) -> None:
    container = pod.container()
    with refused(Code.INVALID_ARGUMENT, "container id", repr(bad)):
        await pod.task("Create", id=bad, bundle=container.bundle)
    await container.create()
    with refused(Code.INVALID_ARGUMENT, "exec id", repr(bad)):
        await pod.task("Exec", id=container.id, exec_id=bad, spec=_any({"args": ["true"]}))


async def test_a_long_id_gets_a_directory_that_a_socket_fits_into(
    daemon: Daemon, controller: Controller
) -> None:
    sandbox_id = "x" * 76
    await controller("Create", sandbox_id)
    answer = await controller("Start", sandbox_id)
    assert len(answer.address.removeprefix("ttrpc+unix://")) <= 106
    await controller("Shutdown", sandbox_id)


# -- the pod ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type_url": "runtime.v1.Nonsense"}, "runtime.v1.Nonsense"),
        ({"type_url": "runtime.v1.PodSandboxConfig", "value": b"\xff\xff\xff"}, "PodSandboxConfig"),
    ],
)
async def test_options_that_are_no_pod_are_refused(
    controller: Controller, options: dict[str, Any], said: str
) -> None:
    with refused(Code.INVALID_ARGUMENT, "odd", said):
        await controller("Create", "odd", options=AnyMessage(**options))


@pytest.mark.parametrize("path", ["relative/netns", "/run/netns/../netns/x", "/run//netns"])
async def test_a_network_namespace_path_with_detours_is_refused(controller: Controller, path: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "odd", "netns_path", repr(path)):
        await controller("Create", "odd", netns_path=path)


@pytest.mark.parametrize("hostname", ["x" * 65, "a b", "a\nb", "a\x00b"])
async def test_a_malformed_host_name_is_refused(make_pod: MakePod, hostname: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "host name"):
        await make_pod(hostname=hostname)


async def test_a_duplicate_sandbox_is_refused_and_the_first_one_stays(pod: Pod) -> None:
    with refused(Code.ALREADY_EXISTS, pod.id):
        await pod.create()
    with refused(Code.FAILED_PRECONDITION, pod.id, "running"):
        await pod.controller("Start", pod.id)
    assert (await pod.controller("Status", pod.id)).state == "SANDBOX_READY"


@pytest.mark.parametrize("method", ["Start", "Stop", "Wait", "Status", "Metrics", "Update"])
async def test_an_unknown_sandbox_is_not_found(controller: Controller, method: str) -> None:
    with refused(Code.NOT_FOUND, "nobody"):
        await controller(method, "nobody")


async def test_shutdown_of_an_unknown_sandbox_is_done_already(controller: Controller) -> None:
    await controller("Shutdown", "nobody")


async def test_an_update_of_unknown_fields_is_refused(pod: Pod) -> None:
    await pod.controller("Update", pod.id, fields=["extensions"])
    with refused(Code.INVALID_ARGUMENT, pod.id, "spec"):
        await pod.controller("Update", pod.id, fields=["spec"])


# -- the bundle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}/../bundle", "{}/", "bundle", "", "{}/./"])
async def test_a_bundle_path_with_detours_is_refused(pod: Pod, form: str) -> None:
    container = pod.container()
    path = form.format(container.bundle)
    with refused(Code.INVALID_ARGUMENT, "bundle", repr(path)):
        await container.create(bundle=path)


async def test_a_missing_bundle_is_not_found(pod: Pod) -> None:
    container = pod.container()
    with refused(Code.NOT_FOUND, "/run/lab/nowhere"):
        await container.create(bundle="/run/lab/nowhere")
    pod.daemon.lab.path(f"{container.bundle}/config.json").unlink()
    with refused(Code.NOT_FOUND, f"{container.bundle}/config.json"):
        await container.create()


async def test_a_symlinked_bundle_or_config_is_refused(pod: Pod) -> None:
    container = pod.container()
    directory = pod.daemon.lab.path(container.directory)
    (directory / "alias").symlink_to("bundle")
    with refused(Code.INVALID_ARGUMENT, f"{container.directory}/alias", "symbolic"):
        await container.create(bundle=f"{container.directory}/alias")
    config = directory / "bundle/config.json"
    config.rename(directory / "elsewhere.json")
    config.symlink_to(f"{container.directory}/elsewhere.json")
    with refused(Code.INVALID_ARGUMENT, "config.json"):
        await container.create()


@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a rootfs link", "a rootfs file"])
async def test_a_bundle_with_the_wrong_kinds_of_files_is_refused(pod: Pod, kind: str) -> None:
    container = pod.container()
    bundle = pod.daemon.lab.path(container.bundle)
    if kind.startswith("a rootfs"):
        (bundle / "rootfs").rmdir()
        if kind == "a rootfs link":
            (bundle / "rootfs").symlink_to("/")
        else:
            (bundle / "rootfs").touch()
    else:
        (bundle / "config.json").unlink()
        if kind == "a FIFO":
            os.mkfifo(bundle / "config.json")
        else:
            (bundle / "config.json").mkdir()
    with refused(Code.INVALID_ARGUMENT, container.bundle):
        await container.create()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"process": []}',
        b'{"process": {"args": ["true"]}, "root": "rootfs"}',
        b'{"process": {"args": ["true"]}, "root": {}}',
        b'{"process": {"args": ["true"]}, "root": {"path": "../../rootfs"}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"namespaces": [1]}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"namespaces": [{"type": 5}]}}',
        b'{"process": {"args": ["true"]}, "root": {"path": "rootfs"}, "mounts": [{}]}',
        b'{"process": {"args": ["true"]}, "root": {"path": "rootfs"}, "mounts": {"a": 1}}',
        b'{"process": {"args": []}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": [1]}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": ["true"], "user": {"uid": "x"}}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": ["true"], "user": 5}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": ["true"], "cwd": 5}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": ["true"], "rlimits": 5}, "root": {"path": "rootfs"}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"cgroupsPath": 5}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"cgroupsPath": "../.."}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"uidMappings": [{"size": "x"}]}}',
        b"[" * 100_000,
    ],
)
async def test_a_config_that_is_no_specification_is_refused(pod: Pod, text: bytes) -> None:
    container = pod.container()
    pod.daemon.lab.path(f"{container.bundle}/config.json").write_bytes(text)
    with refused(Code.INVALID_ARGUMENT, container.bundle):
        await container.create()


async def test_a_config_larger_than_16_mib_is_refused(pod: Pod) -> None:
    container = pod.container()
    with pod.daemon.lab.path(f"{container.bundle}/config.json").open("r+b") as file:
        file.truncate((16 << 20) + 1)
    with refused(Code.INVALID_ARGUMENT, f"{container.bundle}/config.json", "16 MiB"):
        await container.create()


async def test_a_missing_rootfs_is_refused(pod: Pod) -> None:
    container = pod.container()
    pod.daemon.lab.path(f"{container.bundle}/rootfs").rmdir()
    with refused(Code.INVALID_ARGUMENT, f"{container.bundle}/rootfs", "does not exist"):
        await container.create()


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ({"type": "nonsense", "source": "x"}, "nonsense"),
        ({"type": "fuse.sshfs", "source": "x"}, "fuse.sshfs"),
        ({"type": "", "source": "/x"}, "file system type"),
        ({"type": "bind", "source": "/run/lab/nowhere", "options": ["rbind"]}, "/run/lab/nowhere"),
        ({"type": "overlay", "source": "overlay", "options": ["lowerdir=/run/lab/nowhere"]}, "rootfs"),
        ({"type": "overlay", "source": "overlay", "options": [f"lowerdir=/{'x' * 5000}"]}, "overlay"),
        ({"type": "bind", "source": "/run/lab/image", "options": ["rbind", "uidmap=0:1000:10"]}, "uidmap"),
        ({"type": "ext4", "source": "/dev/null", "options": []}, "/dev/null"),
    ],
)
async def test_a_rootfs_mount_that_cannot_be_made_is_refused(
    pod: Pod, mount: dict[str, Any], said: str
) -> None:
    container = pod.container()
    with refused(Code.INVALID_ARGUMENT, said):
        await container.create(rootfs=[mount])
    # The last of several: those before it go again.
    with refused(Code.INVALID_ARGUMENT, said):
        await container.create(rootfs=[*container.rootfs, mount])


async def test_a_checkpoint_to_restore_from_is_refused(pod: Pod) -> None:
    container = pod.container()
    with refused(Code.INVALID_ARGUMENT, container.id, "checkpoint"):
        await container.create(checkpoint="/run/lab/image")


# -- processes -------------------------------------------------------------------------------------


async def test_a_missing_command_of_a_container_is_an_error(pod: Pod) -> None:
    container = pod.container("/bin/nonsense")
    with refused(Code.INVALID_ARGUMENT, "/bin/nonsense"):
        await container.create()


async def test_a_missing_command_of_an_exec_is_an_error_at_once(pod: Pod) -> None:
    container = await pod.running()
    for command in ("nonsense", "/bin/nonsense", "/etc/passwd", "/tmp"):
        process = await container.exec(command)
        with refused(Code.INVALID_ARGUMENT, container.id):
            await pod.task("Start", **process.ids, timeout_s=20)
        assert await process.state() == "created"
        await process.delete()
    assert await container.state() == "running"


@pytest.mark.parametrize(
    "cwd",
    ["/proc/self/fd/7", "/proc/self/fd/8/../..", "/proc", "//proc/self", "/./proc/1/root", "/tmp/../proc"],
)
async def test_a_working_directory_below_proc_is_refused_cve_2024_21626(pod: Pod, cwd: str) -> None:
    container = pod.container("true", cwd=cwd)
    with refused(Code.INVALID_ARGUMENT, "working directory", cwd):
        await container.create()
    running = await pod.running()
    with refused(Code.INVALID_ARGUMENT, "working directory", cwd):
        await running.exec("true", cwd=cwd)


@pytest.mark.parametrize(
    "spec",
    [b"", b"{", b"[]", b"{}", b'{"args": []}', b'{"args": "true"}', b'{"args": ["x"], "user": {"uid": "a"}}',
     b'{"args": ["x"], "user": 5}'],
)  # fmt: skip
async def test_an_exec_that_is_no_process_is_refused(pod: Pod, spec: bytes) -> None:
    container = await pod.running()
    with refused(Code.INVALID_ARGUMENT, "process"):
        await pod.task("Exec", id=container.id, exec_id="odd", spec=AnyMessage(value=spec))
    with refused(Code.NOT_FOUND, "odd"):
        await pod.task("State", id=container.id, exec_id="odd")


async def test_duplicate_containers_and_execs_are_refused(pod: Pod) -> None:
    container = await pod.running()
    with refused(Code.ALREADY_EXISTS, container.id):
        await container.create()
    process = await container.exec("true")
    with refused(Code.ALREADY_EXISTS, "exec1", container.id):
        await pod.task("Exec", **process.ids, spec=_any({"args": ["true"]}))
    assert await container.state() == "running"


async def test_the_same_container_id_in_two_pods_is_refused(make_pod: MakePod, pod: Pod) -> None:
    other = await make_pod(network=cri.NODE)
    container = await pod.running(name="twin")
    with refused(Code.ALREADY_EXISTS, "twin"):
        await other.container(name="twin").create()
    assert await container.state() == "running"
    assert await container.run_exec("echo", "alive") == (0, "alive\n")


async def test_delete_of_what_runs_is_refused(pod: Pod) -> None:
    container = await pod.running()
    process = await container.exec("sleep", "1000")
    await process.start()
    with refused(Code.FAILED_PRECONDITION, container.id, "running"):
        await container.delete()
    with refused(Code.FAILED_PRECONDITION, "exec1", "running"):
        await process.delete()
    assert await container.state() == "running"


async def test_starting_twice_is_refused(pod: Pod) -> None:
    container = await pod.running("true")
    with refused(Code.FAILED_PRECONDITION, container.id):
        await container.start()
    await container.wait()
    with refused(Code.FAILED_PRECONDITION, container.id):
        await container.start()
    with refused(Code.FAILED_PRECONDITION, container.id, "stopped"):
        await container.exec("true")


@pytest.mark.parametrize("signum", [65, 1000, 1 << 31])
async def test_what_is_no_signal_is_refused(pod: Pod, signum: int) -> None:
    container = await pod.running()
    with refused(Code.INVALID_ARGUMENT, str(signum)):
        await container.kill(signum)


@pytest.mark.parametrize("resources", [b"", b"{", b"[]", b'{"memory": 5}'])
async def test_limits_that_are_none_are_refused(pod: Pod, resources: bytes) -> None:
    container = await pod.running()
    with refused(Code.INVALID_ARGUMENT, container.id):
        await pod.task("Update", id=container.id, resources=AnyMessage(value=resources))


async def test_limits_that_the_kernel_does_not_take_are_refused(pod: Pod) -> None:
    container = await pod.running()
    with refused(Code.FAILED_PRECONDITION, container.id, "memory"):
        await pod.task("Update", id=container.id, resources=_any({"memory": {"limit": 1}}))
    assert await container.state() == "running"


# -- namespaces of strangers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "mount", "cgroup", "user"])
async def test_a_namespace_of_a_stranger_is_refused(pod: Pod, bystander: Any, lab: Lab, kind: str) -> None:
    file = {"network": "net", "mount": "mnt"}.get(kind, kind)
    for path in (
        f"/proc/{bystander.pid}/ns/{file}",
        f"/proc/{bystander.pid}/task/{bystander.pid}/ns/{file}",
        f"/proc/self/ns/{file}",
        f"//proc/1/ns/{file}",
        f"/run/../proc/1/ns/{file}",
    ):
        container = pod.container("true")
        namespaces = [e for e in container.spec["linux"]["namespaces"] if e["type"] != kind]
        container.spec["linux"]["namespaces"] = [*namespaces, {"type": kind, "path": path}]
        container.write_spec()
        if (
            kind in ("network", "uts")
            and path.startswith("/proc/")
            and "/task/" not in path
            and "self" not in path
        ):
            # The pod lives in the host's: the entry is dropped whatever pid it names.
            await container.create()
            continue
        if kind == "ipc" and path == f"/proc/{bystander.pid}/ns/ipc":
            # Replaced by the pod's own, whatever pid it names.
            await container.create()
            continue
        with refused(Code.INVALID_ARGUMENT, path):
            await container.create()
