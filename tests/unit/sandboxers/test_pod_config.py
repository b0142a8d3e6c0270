"""What is taken out of a Create request, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.records import from_data
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.runtime.v1 import api_pb2 as cri
from sandboxers.pod_config import (
    POD_CONFIG_TYPE,
    NamespaceMode,
    PodConfig,
    parse_create_request,
)


def request(
    config: cri.PodSandboxConfig | None = None, netns_path: str = "/run/netns/x", **changes: Any
) -> api.ControllerCreateRequest:
    made = api.ControllerCreateRequest(sandbox_id="pod", netns_path=netns_path)
    if config is not None:
        made.options.type_url = POD_CONFIG_TYPE
        made.options.value = config.SerializeToString()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def with_modes(**modes: Any) -> cri.PodSandboxConfig:
    security = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(**modes))
    return cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(security_context=security))


def user_namespace(mode: int, uids: list[Any], gids: list[Any]) -> cri.PodSandboxConfig:
    return with_modes(userns_options=cri.UserNamespace(mode=mode, uids=uids, gids=gids))  # type: ignore[arg-type]


def mapping(host: int = 100_000, inside: int = 0, length: int = 65_536) -> cri.IDMapping:
    return cri.IDMapping(host_id=host, container_id=inside, length=length)


def test_all_that_is_asked_for_is_taken() -> None:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u-1", attempt=2),
        hostname="web-0",
        dns_config=cri.DNSConfig(servers=["10.0.0.1"], searches=["a.b"], options=["ndots:5"]),
        linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kube/p", sysctls={"net.core.somaxconn": "5"}),
    )
    pod = parse_create_request(request(config))
    assert pod == PodConfig(
        sandbox_id="pod",
        name="web",
        namespace="shop",
        uid="u-1",
        hostname="web-0",
        netns_path="/run/netns/x",
        cgroup_parent="/kube/p",
        dns_servers=["10.0.0.1"],
        dns_searches=["a.b"],
        dns_options=["ndots:5"],
        sysctls={"net.core.somaxconn": "5"},
    )
    assert not pod.has_host_network
    assert not pod.has_user_namespace


def test_a_pod_survives_its_record() -> None:
    config = user_namespace(cri.POD, [mapping()], [mapping(host=7)])
    config.linux.sysctls["a"] = "b"
    pod = parse_create_request(request(config))
    assert from_data(PodConfig, json.loads(json.dumps(dataclasses.asdict(pod)))) == pod


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (cri.POD, NamespaceMode.POD),
        (cri.CONTAINER, NamespaceMode.CONTAINER),
        (cri.NODE, NamespaceMode.NODE),
        (cri.TARGET, NamespaceMode.CONTAINER),
        (99, NamespaceMode.POD),
    ],
)
def test_namespace_modes_are_taken_over(mode: int, expected: NamespaceMode) -> None:
    pod = parse_create_request(request(with_modes(network=mode, pid=mode, ipc=mode)))
    assert (pod.network, pod.pid, pod.ipc) == (expected, expected, expected)


def test_a_pod_without_a_network_of_its_own_has_the_hosts() -> None:
    assert parse_create_request(request(None, netns_path="")).has_host_network
    assert parse_create_request(request(with_modes(network=cri.NODE), netns_path="")).has_host_network


@pytest.mark.parametrize("mode", [cri.POD, cri.CONTAINER, cri.TARGET])
def test_a_pod_whose_network_is_missing_does_not_get_the_hosts(mode: int) -> None:
    with pytest.raises(InvalidArgument, match="sandbox pod: netns_path is empty"):
        parse_create_request(request(with_modes(network=mode), netns_path=""))


def test_a_user_namespace_has_its_mappings() -> None:
    pod = parse_create_request(
        request(user_namespace(cri.POD, [mapping(), mapping(5, 65_536, 1)], [mapping()]))
    )
    assert pod.uid_mappings == [[0, 100_000, 65_536], [65_536, 5, 1]]
    assert pod.gid_mappings == [[0, 100_000, 65_536]]
    assert pod.has_user_namespace


@pytest.mark.parametrize(("uids", "gids"), [([], []), ([mapping()], [mapping()])])
def test_the_hosts_user_namespace_needs_no_mapping(uids: list[Any], gids: list[Any]) -> None:
    pod = parse_create_request(request(user_namespace(cri.NODE, uids, gids)))
    assert not pod.has_user_namespace


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (user_namespace(cri.POD, [mapping()], []), "empty gid mapping"),
        (user_namespace(cri.POD, [], [mapping()]), "empty uid mapping"),
        (user_namespace(cri.POD, [mapping(length=0)], [mapping()]), "empty uid mapping"),
        (user_namespace(cri.CONTAINER, [mapping()], [mapping()]), "only be the pod's or the node's"),
        (user_namespace(cri.TARGET, [mapping()], [mapping()]), "only be the pod's or the node's"),
        (cri.PodSandboxConfig(hostname="h" * 65), "not a host name"),
        (cri.PodSandboxConfig(hostname="é" * 33), "not a host name"),
        (cri.PodSandboxConfig(hostname="a b"), "not a host name"),
        (cri.PodSandboxConfig(hostname="a\nb"), "not a host name"),
        (cri.PodSandboxConfig(hostname="a\0"), "not a host name"),
        (cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/a/../../b")), "cgroup_parent"),
        (cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent="a\0b")), "cgroup_parent"),
    ],
)
def test_what_a_pod_cannot_be_is_refused(config: cri.PodSandboxConfig, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"sandbox pod: .*{text}"):
        parse_create_request(request(config))


@pytest.mark.parametrize("parent", ["", "/", "/kubepods/pod1", "kubepods-besteffort.slice", "/a/..b/c"])
def test_ordinary_cgroup_parents_pass(parent: str) -> None:
    config = cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent))
    assert parse_create_request(request(config)).cgroup_parent == parent


@pytest.mark.parametrize(
    "path", ["netns", "/run/../proc/1/ns/net", "/run/netns/..", "./x", "//run/x", "/run/netns/", "/run/a\0b"]
)
def test_a_network_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="netns_path"):
        parse_create_request(request(None, netns_path=path))


@pytest.mark.parametrize("sandbox_id", ["", ".", "..", "a/b", "../x", "x" * 77, "x\n"])
def test_a_malformed_id_is_refused(sandbox_id: str) -> None:
    with pytest.raises(InvalidArgument, match="sandbox id"):
        parse_create_request(request(None, sandbox_id=sandbox_id))


def test_options_of_another_type_are_refused() -> None:
    made = request(cri.PodSandboxConfig())
    made.options.type_url = "type.googleapis.com/runtime.v1.PodSandboxConfig"
    with pytest.raises(InvalidArgument, match=r"type\.googleapis\.com"):
        parse_create_request(made)


@given(st.binary(max_size=300))
def test_random_options_are_a_pod_or_the_callers_fault(data: bytes) -> None:
    made = request(cri.PodSandboxConfig())
    made.options.value = data
    try:
        pod = parse_create_request(made)
    except InvalidArgument:
        return
    json.dumps(dataclasses.asdict(pod))
