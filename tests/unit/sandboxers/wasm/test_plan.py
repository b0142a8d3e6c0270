"""What a specification asks for, and what of it a module cannot have."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from common.errors import InvalidArgument
from sandboxers.wasm.plan import container_oom_score_adj, pid_namespace, plan_container, plan_process


def spec(**linux: Any) -> dict[str, Any]:
    return {
        "root": {"path": "/rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/data", "source": "/host", "options": ["rbind", "ro"]},
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}], **linux},
    }


def test_file_systems_of_the_kernel_are_left_out_and_the_rest_is_mounted_in_order() -> None:
    plan = plan_container(spec())
    assert [(mount.destination, mount.is_bind) for mount in plan.mounts] == [("/dev", False), ("/data", True)]
    assert (plan.rootfs, plan.readonly) == ("/rootfs", True)


def test_namespaces_are_joined_or_made() -> None:
    namespaces = [
        {"type": "mount"},
        {"type": "pid"},
        {"type": "network", "path": "/run/netns/x"},
        {"type": "ipc"},
    ]
    assert plan_container(spec(namespaces=namespaces)).namespaces == {"network": "/run/netns/x", "ipc": ""}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [({"type": "pid"}, ""), ({"type": "pid", "path": "/p"}, "/p"), ({"type": "ipc"}, None)],
)
def test_the_pid_namespace_is_told_apart(entry: dict[str, str], expected: str | None) -> None:
    assert pid_namespace({"linux": {"namespaces": [entry]}}) == expected


@pytest.mark.parametrize(
    "namespaces",
    [[], [{"type": "pid"}], [{"type": "mount", "path": "/x"}], [{"type": "mount"}, {"type": "user"}]],
)
def test_a_mount_namespace_of_its_own_is_a_must_and_users_are_the_hosts(namespaces: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        plan_container(spec(namespaces=namespaces))


def test_other_file_systems_are_refused_by_name() -> None:
    broken = spec()
    broken["mounts"].append({"destination": "/x", "type": "ext4", "source": "/dev/sda"})
    with pytest.raises(InvalidArgument, match=r"ext4.*/x"):
        plan_container(broken)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({}, 0), ({"memory": {}}, 0), ({"memory": {"limit": 5}}, 5), ({"memory": {"limit": -1}}, 0)],
)
def test_the_memory_limit_is_also_that_of_linear_memory(resources: dict[str, Any], expected: int) -> None:
    assert plan_container(spec(resources=resources)).memory_limit_bytes == expected


def test_both_forms_of_cgroup_paths_are_understood() -> None:
    assert plan_container(spec(cgroupsPath="/a/b")).cgroup_path == "/a/b"
    assert plan_container(spec(cgroupsPath="a.slice:cri:id")).cgroup_path == "/a.slice/cri-id.scope"
    assert plan_container(spec()).cgroup_path == ""


def test_a_process_has_its_environment_user_and_limits() -> None:
    plan = plan_process(
        {
            "args": ["m.wasm", "-x"],
            "env": ["A=1", "B=x=y", "EMPTY="],
            "cwd": "/data",
            "user": {"uid": 7, "gid": 8, "additionalGids": [9, 10]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 2**64 - 1}],
            "oomScoreAdj": 300,
        }
    )
    assert plan.env == {"A": "1", "B": "x=y", "EMPTY": "", "PWD": "/data"}
    assert (plan.uid, plan.gid, plan.groups, plan.oom_score_adj) == (7, 8, [9, 10], 300)
    assert plan.umask == 0o022
    assert plan.rlimits == [(resource.RLIMIT_NOFILE, 5, resource.RLIM_INFINITY)]


def test_a_process_can_have_a_umask_of_its_own() -> None:
    assert plan_process({"args": ["x"], "user": {"umask": 0o077}}).umask == 0o077


def test_a_working_directory_that_the_environment_names_already_stays() -> None:
    assert plan_process({"args": ["x"], "cwd": "/a", "env": ["PWD=/b"]}).env == {"PWD": "/b"}
    assert plan_process({"args": ["x"], "cwd": "/"}).env == {}


@pytest.mark.parametrize("entry", ["NAME", "=value", "", "A=\0"])
def test_what_is_no_environment_variable_is_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="environment"):
        plan_process({"args": ["x"], "env": [entry]})


@pytest.mark.parametrize("name", ["RLIMIT_FROBNICATE", "NOFILE", "RLIM_INFINITY", ""])
def test_an_unknown_limit_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        plan_process({"args": ["x"], "rlimits": [{"type": name, "soft": 1, "hard": 1}]})


@pytest.mark.parametrize(
    ("wanted", "own", "given"), [(None, -999, 0), (None, 0, 0), (None, 100, 100), (-5, -999, -5), (0, 100, 0)]
)
def test_nobody_inherits_that_the_daemon_is_exempt_from_being_killed(
    wanted: int | None, own: int, given: int
) -> None:
    process = {} if wanted is None else {"oomScoreAdj": wanted}
    assert container_oom_score_adj(process, own) == given


@pytest.mark.parametrize(("own", "plan"), [({}, -5), ({"oomScoreAdj": 0}, 0), ({"oomScoreAdj": 7}, 7)])
def test_an_exec_that_does_not_say_is_killed_as_readily_as_its_container(
    own: dict[str, int], plan: int
) -> None:
    assert plan_process({"args": ["x"], **own}, -5).oom_score_adj == plan
