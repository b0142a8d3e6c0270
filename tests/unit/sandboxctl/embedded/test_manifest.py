"""Pods in YAML: what is understood, and what is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound, SandboxdError
from sandboxctl.embedded.manifest import read_manifest
from sandboxctl.embedded.plan import HOST_NETWORK, PodPlan, Port, Volume

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 3
  shareProcessNamespace: true
  securityContext: {runAsUser: 7, runAsNonRoot: true, supplementalGroups: [9], sysctls: [{name: a.b, value: "1"}]}
  dnsConfig: {nameservers: [10.0.0.1], searches: [example], options: [{name: ndots, value: "2"}, {name: edns0}]}
  volumes:
    - {name: data, emptyDir: {}}
    - {name: host, hostPath: {path: /srv, type: Directory}}
  initContainers:
    - {name: first, image: image, command: [prepare]}
  containers:
    - name: main
      image: images/web:1
      args: [serve, "80"]
      env: [{name: A, value: b}, {name: EMPTY}]
      workingDir: /srv
      ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 9}]
      volumeMounts: [{name: data, mountPath: /data, subPath: x}, {name: host, mountPath: /host, readOnly: true}]
      resources: {limits: {memory: 64Mi, cpu: 0.5}, requests: {cpu: 250m, memory: 1Mi}}
      securityContext: {runAsGroup: 8, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [CHOWN]}}
"""


def read(tmp_path: Path, text: str, network: str = "none") -> PodPlan:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    return read_manifest(str(path), network)


def test_a_pod_of_kubernetes(tmp_path: Path) -> None:
    plan = read(tmp_path, POD, "bridge")
    assert (plan.name, plan.hostname, plan.network, plan.stop_timeout_s) == ("web", "web", "bridge", 3.0)
    assert plan.shares_pids
    assert plan.sysctls == {"a.b": "1"}
    assert (plan.dns_servers, plan.dns_options) == (("10.0.0.1",), ("ndots:2", "edns0"))
    assert plan.ports == (Port(8080, 80),), "a port without hostPort is nothing but information"
    first, main = plan.all_containers
    assert (first.name, first.command, first.arguments, first.user) == ("first", ("prepare",), None, "7")
    assert main.image == str(tmp_path / "images/web:1"), "relative to the manifest"
    assert (main.command, main.arguments, main.user) == (None, ("serve", "80"), "7:8")
    assert main.environment == (("A", "b"), ("EMPTY", ""))
    assert main.volumes == (
        Volume("/data", scratch="data", part="x"),
        Volume("/host", "/srv", read_only=True),
    )
    assert (main.memory_bytes, main.cpu_millis, main.cpu_shares) == (64 << 20, 500, 256)
    assert (main.capabilities_added, main.capabilities_dropped) == (("CHOWN",), ("ALL",))
    assert main.must_not_be_root
    assert not main.may_gain_privileges
    assert main.further_groups == (9,)


def test_a_spec_alone(tmp_path: Path) -> None:
    plan = read(tmp_path, "containers: [{name: a, image: /x, tty: true, stdin: true}]\nhostNetwork: true")
    assert (plan.name, plan.network, plan.hostname) == ("pod", HOST_NETWORK, "")
    (container,) = plan.containers
    assert (container.image, container.terminal, container.stdin) == ("/x", True, True)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("kind: Deployment", "kind: "),
        ("kind: Pod\nspec: {}", "spec.containers: "),
        ("containers: []", "containers: "),
        ("containers: [{name: a}]", r"containers\[0\].image: "),
        ("containers: [{name: a, image: b, livenessProbe: {}}]", r"containers\[0\].livenessProbe: "),
        ("containers: [{name: a, image: b, imagePullPolicy: Always}]", r"containers\[0\].imagePullPolicy: "),
        ("containers: [{name: a, image: b, command: [1]}]", r"containers\[0\].command: "),
        ("containers: [{name: a, image: b, tty: 1}]", r"containers\[0\].tty: "),
        ("containers: [{name: a, image: b}, {name: a, image: b}]", "containers: "),
        ("restartPolicy: Always\ncontainers: [{name: a, image: b}]", "restartPolicy: "),
        ("runtimeClassName: x\ncontainers: [{name: a, image: b}]", "runtimeClassName: "),
        ("volumes: [{name: a, secret: {}}]\ncontainers: [{name: a, image: b}]", r"volumes\[0\].secret: "),
        ("volumes: [{name: a}]\ncontainers: [{name: a, image: b}]", r"volumes\[0\]: "),
        ("volumes: [{name: a, hostPath: {path: ../b}}]\ncontainers: []", r"volumes\[0\].hostPath.path: "),
        (
            "containers: [{name: a, image: b, volumeMounts: [{name: x, mountPath: /x}]}]",
            r"containers\[0\].volumeMounts\[0\].name: ",
        ),
        (
            "containers: [{name: a, image: b, env: [{name: X, valueFrom: {}}]}]",
            r"containers\[0\].env\[0\].valueFrom: ",
        ),
        (
            "containers: [{name: a, image: b, securityContext: {privileged: true}}]",
            r"containers\[0\].securityContext.privileged: ",
        ),
        ("[]", "expected an object"),
        ("a: b: c", "not valid YAML"),
        ("1: x\ncontainers: [{name: a, image: b}]", "'1': not supported"),
        (
            "containers: [{name: a, image: b, ports: [{containerPort: 1, hostPort: 1, hostIP: '1; x'}]}]",
            r"containers\[0\].ports\[0\]: '1; x' is no IP address",
        ),
        ("kind: 0x" + "f" * 5000, "kind: a number too large is not supported"),
        (
            "terminationGracePeriodSeconds: 1" + "0" * 400 + "\ncontainers: [{name: a, image: b}]",
            "terminationGrace",
        ),
        (
            "containers: [{name: a, image: b, securityContext: {runAsUser: 2147483648}}]",
            r"containers\[0\].securityContext.runAsUser: ",
        ),
        (
            f"containers: [{{name: a, image: b, resources: {{limits: {{memory: 0x{'f' * 5000}}}}}}}]",
            r"containers\[0\].resources.limits.memory: is not as expected",
        ),
        ("containers: x", "containers: "),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(InvalidArgument, match=f"pod.yaml: {where}") as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "containers: [{name: ../a, image: b}]",
        "name: /\ncontainers: [{name: a, image: b}]",
        "volumes: [{name: ../.., emptyDir: {}}]\ncontainers: [{name: a, image: b}]",
        "volumes: [{name: v, emptyDir: {}}]\n"
        "containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /x, subPath: ../../y}]}]",
        "volumes: [{name: v, emptyDir: {}}]\n"
        "containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /x/../..}]}]",
    ],
)
def test_nothing_leads_out_of_its_directory(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument):
        read(tmp_path, text)


def test_a_text_that_would_grow_without_end_is_not_shown(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidArgument, match="restartPolicy: list is not supported here"):
        read(tmp_path, "\n".join([*lines, "restartPolicy: *a11", "containers: [{name: a, image: b}]"]))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_manifest(str(tmp_path / "absent.yaml"))


def test_a_truncated_manifest_is_refused_or_read_but_never_a_traceback(tmp_path: Path) -> None:
    for length in range(0, len(POD), 7):
        try:
            read(tmp_path, POD[:length])
        except SandboxdError as error:
            assert str(error).startswith(str(tmp_path))
