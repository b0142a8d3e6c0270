"""An engine's spec joins the pod it belongs to, or is refused with a reason."""

from __future__ import annotations

import json
import posixpath
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.oci.spec import (
    PodView,
    check_process,
    fit_to_privileges,
    has_private_pid_namespace,
    host_id,
    join_pod,
    parse_process,
    parse_spec,
    process_owner,
    set_version,
)

POD = PodView(
    namespaces={"network": "/run/netns/x", "ipc": "/pod/ns/ipc", "uts": "/pod/ns/uts"},
    files={"/etc/hosts": "/pod/etc/hosts", "/etc/resolv.conf": "/pod/etc/resolv.conf"},
    shm_path="/pod/shm",
)
HOST_POD = PodView(
    namespaces={"network": None, "ipc": None, "uts": None, "pid": None}, files={}, shm_path="/dev/shm"
)


SHARED = tuple(
    {"type": kind, "path": f"/proc/0/ns/{name}"}
    for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
)
OWN = ({"type": "mount"}, {"type": "pid"})


def spec_of(**changes: Any) -> dict[str, Any]:
    """What containerd writes for a container, reduced to what is read here."""
    spec: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": {"args": ["sleep", "1"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [*SHARED, *OWN]},
    }
    return {**spec, **changes}


def with_namespaces(*entries: dict[str, Any]) -> dict[str, Any]:
    """A spec with these entries instead of the ordinary ones of their kinds."""
    kinds = {entry["type"] for entry in entries}
    return with_only(*entries, *(entry for entry in (*SHARED, *OWN) if entry["type"] not in kinds))


def with_only(*entries: dict[str, Any]) -> dict[str, Any]:
    return spec_of(linux={"namespaces": list(entries)})


def join(spec: dict[str, Any], pod: PodView = POD, pids: tuple[int, ...] = ()) -> dict[str, Any]:
    spec = parse_spec(json.dumps(spec).encode(), "config.json")
    join_pod(spec, pod, lambda pid: pid in pids)
    return spec


def namespaces(spec: dict[str, Any]) -> dict[str, str | None]:
    return {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]}


# -- namespaces ------------------------------------------------------------------------------------


def test_paths_of_the_sandbox_process_become_the_pods_files() -> None:
    assert namespaces(join(with_only(*SHARED, *OWN))) == {**POD.namespaces, "mount": None, "pid": None}


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "user", "pid", "mount"])
def test_a_namespace_that_is_not_named_would_be_the_hosts(kind: str) -> None:
    pod = PodView({**POD.namespaces, "user": "/pod/ns/user"}, POD.files, POD.shm_path)
    named = [*SHARED, *OWN, {"type": "user", "path": "/proc/0/ns/user"}]
    assert "user" in namespaces(join(with_only(*named), pod))
    left = [entry for entry in named if entry["type"] != kind]
    with pytest.raises(InvalidArgument, match=f"names no {kind} namespace"):
        join(with_only(*left), pod)


def test_host_modes_need_no_entry() -> None:
    assert namespaces(join(with_only({"type": "mount"}), HOST_POD)) == {"mount": None}


def test_host_modes_drop_the_entry() -> None:
    spec = with_namespaces(
        {"type": "network", "path": "/proc/7/ns/net"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"},
        {"type": "uts", "path": "/proc/7/ns/uts"},
        {"type": "pid", "path": "/proc/7/ns/pid"},
        {"type": "mount"},
    )
    assert namespaces(join(spec, HOST_POD)) == {"mount": None}


def test_the_pid_namespace_of_a_container_of_the_same_pod_may_be_joined() -> None:
    spec = with_namespaces({"type": "pid", "path": "/proc/4711/ns/pid"})
    assert namespaces(join(spec, pids=(4711,)))["pid"] == "/proc/4711/ns/pid"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("pid", "/proc/1/ns/pid"),
        ("pid", "/proc/4711/ns/pid_for_children"),
        ("pid", "/proc/4711/ns/net"),
        ("mount", "/proc/4711/ns/mnt"),
        ("user", "/proc/4711/ns/user"),
        ("cgroup", "/proc/0/ns/cgroup"),
        ("network", "/proc/self/ns/net"),
        ("network", "/proc/thread-self/ns/net"),
        ("network", "/proc/1/task/1/ns/net"),
        ("network", "/proc/1/root/proc/1/ns/net"),
        ("network", "//proc/1/ns/net"),
        ("network", "/./proc/1/ns/net"),
        ("network", "/proc/./1/ns/net"),
        ("network", "/run/../proc/1/ns/net"),
        ("network", "/proc"),
        ("network", "/run/netns/.."),
        ("network", "proc/1/ns/net"),
        ("network", "../proc/1/ns/net"),
        ("network", "/proc/1/ns/net\n"),
        ("network", "/proc/-1/ns/net"),
    ],
)
def test_a_path_that_is_not_the_pods_is_refused(kind: str, path: str) -> None:
    with pytest.raises(InvalidArgument, match="not one of its pod's"):
        join(with_namespaces({"type": kind, "path": path}), pids=(4711,))


SEGMENT = st.sampled_from(["proc", "1", "4711", "self", "ns", "net", "pid", ".", "..", "", "run", "x"])


@given(
    kind=st.sampled_from(["network", "ipc", "uts", "pid", "user", "mount", "cgroup", "time"]),
    path=st.lists(SEGMENT, min_size=1, max_size=8).map("/".join) | st.text(max_size=20),
    absolute=st.booleans(),
)
def test_no_spelling_leads_into_proc(kind: str, path: str, absolute: bool) -> None:
    spec = with_namespaces({"type": kind, "path": f"/{path}" if absolute else path})
    try:
        result = namespaces(join(spec, pids=(4711,))).get(kind)
    except InvalidArgument:
        return
    if not result or result == "/proc/4711/ns/pid":
        return
    assert result.startswith("/")
    assert not f"{posixpath.normpath(result).replace('//', '/')}/".startswith("/proc/")


@given(st.lists(st.tuples(st.sampled_from(["network", "ipc", "uts"]), st.integers(0, 1 << 22)), max_size=5))
def test_whoever_the_engine_names_the_container_joins_its_own_pod(entries: list[tuple[str, int]]) -> None:
    short = {"network": "net", "ipc": "ipc", "uts": "uts"}
    spec = with_namespaces(*({"type": k, "path": f"/proc/{pid}/ns/{short[k]}"} for k, pid in entries))
    for kind, path in namespaces(join(spec)).items():
        assert path == POD.namespaces.get(kind)


def test_a_pid_namespace_is_private_only_without_a_path() -> None:
    assert has_private_pid_namespace(with_namespaces({"type": "pid"}))
    assert not has_private_pid_namespace(with_namespaces({"type": "pid", "path": "/pod/ns/pid"}))
    assert not has_private_pid_namespace(with_only({"type": "mount"}))


# -- files and shared memory -----------------------------------------------------------------------


def mounts(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert len({m["destination"] for m in spec["mounts"]}) == len(spec["mounts"])
    return {mount["destination"]: mount for mount in spec["mounts"]}


def test_the_pods_files_are_mounted_where_nothing_else_is() -> None:
    own = {"destination": "/etc//hosts/", "type": "bind", "source": "/kubelet/hosts"}
    found = mounts(join(spec_of(mounts=[own])))
    assert "/etc/hosts" not in found
    assert found["/etc/resolv.conf"]["source"] == "/pod/etc/resolv.conf"
    assert found["/etc/resolv.conf"]["options"] == ["rbind", "rprivate", "rw"]


def test_files_of_a_read_only_container_are_read_only() -> None:
    found = mounts(join(spec_of(root={"path": "rootfs", "readonly": True})))
    assert found["/etc/hosts"]["options"][-1] == "ro"
    assert found["/dev/shm"]["options"][-1] == "rw", "shared memory is for writing"


@pytest.mark.parametrize("destination", ["/dev/shm", "/dev/shm/", "//dev/./shm"])
def test_the_engines_private_shm_becomes_the_pods(destination: str) -> None:
    private = {"destination": destination, "type": "tmpfs", "source": "shm", "options": ["size=65536k"]}
    found = mounts(join(spec_of(mounts=[{"destination": "/dev", "type": "tmpfs"}, private])))
    assert found["/dev/shm"]["source"] == "/pod/shm"
    assert list(found).index("/dev") < list(found).index("/dev/shm"), "or /dev would hide it"


def test_a_volume_at_dev_shm_stays() -> None:
    volume = {"destination": "/dev/shm", "type": "bind", "source": "/volume"}
    assert mounts(join(spec_of(mounts=[volume])))["/dev/shm"]["source"] == "/volume"


def test_a_container_without_shm_gets_the_pods() -> None:
    assert mounts(join(spec_of(mounts=None)))["/dev/shm"]["source"] == "/pod/shm"


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"{}",
        b'{"process": null}',
        b"[" * 100_000,
        b'{"process": ' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_spec_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        parse_spec(text, "config.json")


def test_null_counts_as_absent() -> None:
    for linux in (None, {"namespaces": None, "uidMappings": None}):
        text = json.dumps(spec_of(linux=linux, mounts=None, annotations=None)).encode()
        with pytest.raises(InvalidArgument, match="names no ipc, mount, network, pid, uts namespace"):
            join_pod(parse_spec(text, "config.json"), POD, lambda _: False)
    assert join(spec_of(mounts=None, annotations=None))["mounts"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    "process", "process.args", "process.args.0", "process.cwd", "process.user", "process.user.uid",
    "process.user.gid", "process.rlimits", "process.rlimits.0", "process.rlimits.0.type",
    "process.rlimits.0.hard", "process.oomScoreAdj", "root", "root.path", "root.readonly", "mounts",
    "mounts.0", "mounts.0.destination", "mounts.0.type", "linux", "linux.namespaces", "linux.namespaces.0",
    "linux.namespaces.0.type", "linux.namespaces.0.path", "linux.uidMappings", "linux.uidMappings.0",
    "linux.uidMappings.0.size", "linux.uidMappings.0.hostID", "linux.cgroupsPath", "annotations",
]  # fmt: skip


@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_in_any_place_is_taken_or_refused_as_the_callers_fault(place: str, value: Any) -> None:
    spec = spec_of()
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 1 << 40, "soft": 1024}]
    spec["process"]["oomScoreAdj"] = -999
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    spec["linux"]["namespaces"][0]["path"] = "/run/netns/x"
    parent: Any = spec
    *path, last = place.split(".")
    for step in path:
        parent = parent[int(step) if isinstance(parent, list) else step]
    parent[int(last) if isinstance(parent, list) else last] = value
    try:
        result = parse_spec(json.dumps(spec).encode(), "config.json")
        check_process(result["process"], "config.json")
        join_pod(result, POD, lambda pid: False)
        fit_to_privileges(result["process"])
        process_owner(result, result["process"])
    except InvalidArgument:
        pass


def test_the_version_is_one_that_every_runtime_takes() -> None:
    spec = spec_of()
    set_version(spec)
    assert spec["ociVersion"] == "1.0.2"


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cwd", ["", None, "/", "/srv", "/procs", "/srv/proc", "/..data", "/a/.../b"])
def test_ordinary_working_directories_pass(cwd: str | None) -> None:
    check_process({"args": ["x"], "cwd": cwd}, "exec")


@pytest.mark.parametrize(
    "cwd",
    [
        "/proc/self/fd/7", "/proc", "//proc/self", "/./proc/1/cwd", "/.//./proc/", "/srv/../proc/self/fd/7",
        "/srv/..", "proc/self/fd/7", "srv", ".", 5, ["/"],
    ],
)  # fmt: skip
def test_a_working_directory_through_which_the_host_is_seen_is_refused(cwd: object) -> None:
    with pytest.raises(InvalidArgument, match="working directory"):
        check_process({"args": ["x"], "cwd": cwd}, "exec")


@pytest.mark.parametrize("args", [None, [], "sh", [1], ["sh", None], {}])
def test_a_process_without_a_command_is_refused(args: object) -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        parse_process(json.dumps({"args": args}).encode(), "exec")


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b"\x80", b"[" * 100_000])
def test_an_exec_that_is_no_process_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="exec"):
        parse_process(text, "exec")


# -- owners ----------------------------------------------------------------------------------------

MAPPINGS = [
    {"containerID": 0, "hostID": 100_000, "size": 1000},
    {"containerID": 1000, "hostID": 5000, "size": 1},
]


@pytest.mark.parametrize(("inside", "outside"), [(0, 100_000), (999, 100_999), (1000, 5000)])
def test_an_id_is_mapped_through_its_range(inside: int, outside: int) -> None:
    assert host_id(MAPPINGS, inside) == outside


def test_without_mappings_an_id_is_the_hosts() -> None:
    assert process_owner(spec_of(), {"user": {"uid": 33, "gid": 34}}) == (33, 34)
    assert process_owner(spec_of(), {}) == (0, 0)


@pytest.mark.parametrize("inside", [1001, -1, 1 << 40])
def test_an_unmapped_id_is_refused(inside: int) -> None:
    with pytest.raises(InvalidArgument, match="not mapped"):
        host_id(MAPPINGS, inside)


@pytest.mark.parametrize("value", [-1, 0xFFFFFFFF, 1 << 40])
def test_what_is_no_id_is_refused(value: int) -> None:
    with pytest.raises(InvalidArgument, match="not a user or group id"):
        host_id([], value)
    with pytest.raises(InvalidArgument, match="not a user or group id"):
        host_id([{"containerID": 0, "hostID": value, "size": 1}], 0)


# -- privileges ------------------------------------------------------------------------------------


def test_limits_above_ours_are_lowered_and_told() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("RLIMIT_NOFILE is not limited here")
    low = {"type": "RLIMIT_NOFILE", "hard": hard, "soft": 10}
    limits = [{"type": "RLIMIT_NOFILE", "hard": hard + 1, "soft": hard + 1}, dict(low)]
    assert fit_to_privileges({"args": ["x"], "rlimits": limits}) == [f"RLIMIT_NOFILE {hard + 1} -> {hard}"]
    assert limits == [{"type": "RLIMIT_NOFILE", "hard": hard, "soft": hard}, low]


@pytest.mark.parametrize("name", ["RLIMIT_NONESUCH", "getrlimit", "RLIM_INFINITY", "", "error"])
def test_a_limit_of_unknown_name_is_the_runtimes_to_judge(name: str) -> None:
    limit = {"type": name, "hard": 1 << 60, "soft": 1}
    assert fit_to_privileges({"args": ["x"], "rlimits": [limit]}) == []
    assert limit["hard"] == 1 << 60


def test_an_oom_score_below_ours_is_raised_to_ours() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    process = {"args": ["x"], "oomScoreAdj": own - 1}
    assert fit_to_privileges(process) == [f"oomScoreAdj {own - 1} -> {own}"]
    assert process["oomScoreAdj"] == own
    process["oomScoreAdj"] = own + 1
    assert fit_to_privileges(process) == []
