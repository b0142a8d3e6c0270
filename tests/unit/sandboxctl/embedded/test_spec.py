"""Specifications of containers: defaults, what the image wants, and what is asked for."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from common.errors import InvalidArgument
from common.oci.spec import PodView, join_pod, parse_spec
from sandboxctl.accounts import Account
from sandboxctl.embedded.image_layout import ImageConfig
from sandboxctl.embedded.plan import ContainerPlan, PodPlan
from sandboxctl.embedded.seccomp import default_profile
from sandboxctl.embedded.spec import CAPABILITIES, Placement, build_spec, command_of

IMAGE = ImageConfig(entrypoint=("/entry",), command=("arg",), environment=("PATH=/bin", "A=image"))
ROOT = Account(0, 0)
CONTAINER = ContainerPlan("main", "image")
PLACEMENT = Placement("pod", "pod-main", "image:1", "/parent/pod-main", [("/src", "/dst", True)])


def build(pod: PodPlan | None = None, account: Account = ROOT, **container: Any) -> dict[str, Any]:
    plan = dataclasses.replace(CONTAINER, **container)
    return build_spec(pod or PodPlan("pod", (plan,)), plan, IMAGE, account, PLACEMENT)


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, ["/entry", "arg"]),
        ({"arguments": ("mine",)}, ["/entry", "mine"]),
        ({"command": ("/other",)}, ["/other"]),
        ({"command": ("/other",), "arguments": ("mine",)}, ["/other", "mine"]),
        ({"command": ()}, None),
    ],
)
def test_the_command(changes: dict[str, Any], command: list[str] | None) -> None:
    container = dataclasses.replace(CONTAINER, **changes)
    if command is None:
        with pytest.raises(InvalidArgument, match="its image names no command"):
            command_of(container, IMAGE)
    else:
        assert command_of(container, IMAGE) == command


def test_the_environment_is_the_images_and_then_ones_own() -> None:
    env = build(environment=(("A", "own"), ("B", "x")))["process"]["env"]
    assert env == ["PATH=/bin", "A=own", "B=x"]


def test_root_has_the_default_capabilities_and_others_only_their_bounds() -> None:
    assert set(build()["process"]["capabilities"]["effective"]) == CAPABILITIES
    other = build(account=Account(5, 6, (7,)))["process"]
    assert "effective" not in other["capabilities"]
    assert other["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}


def test_capabilities_are_added_and_dropped_by_either_name() -> None:
    changed = build(capabilities_dropped=("all",), capabilities_added=("CAP_SYS_TIME", "chown"))
    assert changed["process"]["capabilities"]["bounding"] == ["CAP_CHOWN", "CAP_SYS_TIME"]
    with pytest.raises(InvalidArgument, match="no such capability: CAP_FLY"):
        build(capabilities_added=("fly",))


def test_whoever_must_not_be_root_is_refused_as_root() -> None:
    with pytest.raises(InvalidArgument, match="would run as root"):
        build(must_not_be_root=True)
    assert build(must_not_be_root=True, account=Account(1, 1))


def test_limits() -> None:
    resources = build(memory_bytes=1 << 26, cpu_millis=500, cpu_shares=512)["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 26}
    assert resources["cpu"] == {"period": 100_000, "quota": 50_000, "shares": 512}
    assert not {"memory", "cpu"} & build()["linux"]["resources"].keys()


@pytest.mark.parametrize(
    ("pod", "kinds"),
    [
        ({}, {"mount", "ipc", "network", "uts", "pid"}),
        ({"network": "host"}, {"mount", "ipc", "pid"}),
        ({"host_pid": True, "host_ipc": True}, {"mount", "network", "uts"}),
    ],
)
def test_a_pods_daemon_takes_the_namespaces(pod: dict[str, Any], kinds: set[str]) -> None:
    spec = build(PodPlan("pod", (CONTAINER,), **pod))
    assert {entry["type"] for entry in spec["linux"]["namespaces"]} == kinds
    held: dict[str, str | None] = {"ipc": "/pod/ipc", "uts": "/pod/uts", "network": "/pod/net"}
    for kind in {"ipc", "uts", "network", "pid"} - kinds:
        held[kind] = None
    parsed = parse_spec(json.dumps(spec).encode(), "config.json")
    join_pod(parsed, PodView(held, {}, "/pod/shm"), lambda pid: False)
    paths = {entry["type"]: entry.get("path") for entry in parsed["linux"]["namespaces"]}
    assert paths == {kind: held.get(kind) for kind in kinds}


def test_volumes_are_bound_as_they_are_meant() -> None:
    (bound,) = [mount for mount in build()["mounts"] if mount["type"] == "bind"]
    assert bound == {
        "destination": "/dst",
        "type": "bind",
        "source": "/src",
        "options": ["rbind", "rprivate", "ro"],
    }


def test_what_steers_the_machine_is_filtered_until_a_capability_allows_it() -> None:
    def allowed(*capabilities: str) -> set[str]:
        rules = default_profile(frozenset(capabilities))["syscalls"]
        return {
            n
            for rule in rules
            if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
            for n in rule["names"]
        }

    assert not allowed() & {
        "mount",
        "unshare",
        "setns",
        "bpf",
        "kexec_load",
        "init_module",
        "add_key",
        "io_uring_setup",
    }
    assert not allowed() & {"clone", "clone3", "socket", "personality"}, "only with conditions"
    assert {"mount", "clone", "clone3"} <= allowed("CAP_SYS_ADMIN")
    assert {"read", "execve", "openat2", "futex"} <= allowed()


def test_what_is_no_program_of_this_kernel_has_no_filter_of_it() -> None:
    placement = dataclasses.replace(PLACEMENT, is_native=False)
    assert "seccomp" not in build_spec(PodPlan("p", ()), CONTAINER, IMAGE, Account(0, 0), placement)["linux"]
    assert "seccomp" in build()["linux"]
