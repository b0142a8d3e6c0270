"""Pods in YAML: Kubernetes' Pod, or its `spec` alone. Every field is understood or refused by its name.

Source: Kubernetes API reference, Pod v1 core. Left out is what needs a cluster: other objects that are referred to,
probes, restarts, everything about scheduling. Images are paths on this machine, relative to the manifest's directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from common.config import read_yaml
from common.errors import InvalidArgument
from common.identifiers import check_identifier
from sandboxctl.embedded.plan import HOST_NETWORK, NO_NETWORK, ContainerPlan, PodPlan, Port, Volume
from sandboxctl.embedded.quantities import check_destination, check_port, parse_cpus, parse_memory
from sandboxctl.ids import HIGHEST_ID

_SHARES_PER_CPU = 1024
_PULL_POLICIES = ("IfNotPresent", "Never")

_MakeVolume = Callable[[str, bool, str], Volume]
"""Makes a volume of its destination, whether it is read-only, and a path below it ("" for all of it)."""


def read_manifest(path: str, network: str = NO_NETWORK) -> PodPlan:
    """Return the pod of a file.

    :param network: what the pod gets unless it asks for the host's.
    :raise NotFound, InvalidArgument: the file, or the field at fault, is named.
    """
    document = read_yaml(path)
    fields = _Fields(document, "", path)
    name = ""
    if "kind" in document or "apiVersion" in document:
        fields.only(kind="Pod", apiVersion="v1")
        metadata = fields.section("metadata")
        name = metadata.text("name")
        labels = metadata.texts_by_name("labels")
        metadata.ignore("namespace", "annotations", "uid", "creationTimestamp")
        metadata.end()
        fields.ignore("status")
        spec = fields.section("spec")
        fields.end()
    else:
        spec, labels = fields, {}
        name = spec.text("name")
    name = name or os.path.basename(path).partition(".")[0]
    return _pod(spec, check_identifier("pod", name), labels, network)


class _Fields:
    """The fields of an object, taken one by one; `end` refuses those that nobody took."""

    def __init__(self, value: Any, path: str, source: str) -> None:
        self.path, self.source = path, source
        if not isinstance(value, dict):
            raise self.error("expected an object with fields")
        self._left: dict[str, Any] = dict(value)

    def error(self, complaint: str, field: Any = "") -> InvalidArgument:
        # YAML has keys that are no text.
        name = field if isinstance(field, str) else _shown(field)
        where = ".".join(part for part in (self.path, name) if part)
        return InvalidArgument(
            f"{self.source}: {where}: {complaint}" if where else f"{self.source}: {complaint}"
        )

    def take(self, field: str, shape: type | tuple[type, ...], default: Any) -> Any:
        value = self._left.pop(field, None)
        if value is None:
            return default
        if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
            raise self.error(f"is not as expected: {_shown(value)}", field)
        return value

    def has(self, field: str) -> bool:
        return field in self._left

    def amount(self, field: str) -> str:
        """A quantity, which YAML may have taken for a number."""
        value = self.take(field, (str, int, float), "")
        if _is_huge(value):
            raise self.error(f"is not as expected: {_shown(value)}", field)
        return str(value)

    def text(self, field: str) -> str:
        value: str = self.take(field, str, "")
        if "\0" in value:
            raise self.error("has a null character in it", field)
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        value: bool = self.take(field, bool, default)
        return value

    def number(self, field: str, default: int | None = None) -> int | None:
        value: int | None = self.take(field, int, default)
        if value is not None and not 0 <= value <= HIGHEST_ID:
            raise self.error(f"is not between 0 and {HIGHEST_ID}", field)
        return value

    def texts(self, field: str) -> tuple[str, ...] | None:
        values = self.take(field, list, None)
        if values is None:
            return None
        if not all(isinstance(value, str) and "\0" not in value for value in values):
            raise self.error("is no list of texts: quote numbers and words such as yes", field)
        return tuple(values)

    def texts_by_name(self, field: str) -> dict[str, str]:
        values: dict[str, str] = self.take(field, dict, {})
        if not all(isinstance(text, str) for pair in values.items() for text in pair):
            raise self.error("is no mapping of texts", field)
        return values

    def section(self, field: str) -> _Fields:
        path = f"{self.path}.{field}" if self.path else field
        return _Fields(self.take(field, dict, {}), path, self.source)

    def sections(self, field: str) -> list[_Fields]:
        path = f"{self.path}.{field}" if self.path else field
        entries = self.take(field, list, [])
        return [_Fields(entry, f"{path}[{number}]", self.source) for number, entry in enumerate(entries)]

    def only(self, **allowed: Any) -> None:
        """Take fields that may be left out, but have no other than these values."""
        for field, values in allowed.items():
            known = values if isinstance(values, tuple) else (values,)
            value = self._left.pop(field, known[0])
            if value not in known:
                choice = " or ".join(str(one) for one in known)
                raise self.error(f"{_shown(value)} is not supported here, only {choice}", field)

    def ignore(self, *names: str) -> None:
        """Take fields that change nothing here."""
        for name in names:
            self._left.pop(name, None)

    def end(self) -> None:
        for field in self._left:
            raise self.error("not supported without a cluster, or unknown", field)


def _shown(value: Any) -> str:
    # Of a list or an object nothing: a few aliases of YAML make a text of it that fits into no memory.
    if isinstance(value, (list, dict, tuple)):
        return type(value).__name__
    return "a number too large" if _is_huge(value) else repr(str(value)[:60])


def _is_huge(value: Any) -> bool:
    # Python makes no text of numbers with thousands of digits.
    return isinstance(value, int) and value.bit_length() > 64


class _Identity(NamedTuple):
    """Who the containers of a pod run as unless they say otherwise."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    must_not_be_root: bool


def _pod(spec: _Fields, name: str, labels: dict[str, str], network: str) -> PodPlan:
    # What only says that something is not wanted, or where a pod may run, which is here.
    spec.only(
        restartPolicy="Never", enableServiceLinks=(False, True), automountServiceAccountToken=(False, True)
    )
    spec.only(dnsPolicy=("Default", "ClusterFirst", "None"), hostUsers=True)
    spec.ignore(
        "nodeName", "nodeSelector", "schedulerName", "serviceAccountName", "serviceAccount", "tolerations"
    )
    spec.ignore("priority", "priorityClassName", "preemptionPolicy")
    volumes = _volumes(spec)
    security = spec.section("securityContext")
    identity = _Identity(
        security.number("runAsUser"),
        security.number("runAsGroup"),
        _numbers(security, "supplementalGroups"),
        security.flag("runAsNonRoot"),
    )
    sysctls = {
        entry.text("name"): _ended(entry, entry.text("value")) for entry in security.sections("sysctls")
    }
    _check_seccomp(security)
    security.end()
    dns = spec.section("dnsConfig")
    servers, searches = dns.texts("nameservers") or (), dns.texts("searches") or ()
    options = []
    for option in dns.sections("options"):
        label, value = option.text("name"), option.text("value")
        options.append(_ended(option, f"{label}:{value}" if value else label))
    dns.end()
    host_network = spec.flag("hostNetwork")
    ports: list[Port] = []

    def containers(field: str) -> tuple[ContainerPlan, ...]:
        return tuple(_container(entry, volumes, identity, ports) for entry in spec.sections(field))

    init_containers, main = containers("initContainers"), containers("containers")
    if not main:
        raise spec.error("a pod has at least one container", "containers")
    names = [container.name for container in (*init_containers, *main)]
    if len(set(names)) < len(names):
        raise spec.error("two containers have the same name", "containers")
    plan = PodPlan(
        name=name,
        containers=main,
        init_containers=init_containers,
        network=HOST_NETWORK if host_network else network,
        ports=tuple(ports) if not host_network else (),
        hostname="" if host_network else spec.text("hostname") or name[:63],
        shares_pids=spec.flag("shareProcessNamespace"),
        host_pid=spec.flag("hostPID"),
        host_ipc=spec.flag("hostIPC"),
        sysctls=sysctls,
        dns_servers=servers,
        dns_searches=searches,
        dns_options=tuple(options),
        stop_timeout_s=float(spec.number("terminationGracePeriodSeconds", 10) or 0),
        labels=labels,
    )
    spec.ignore("hostname")
    spec.end()
    return plan


def _volumes(spec: _Fields) -> dict[str, _MakeVolume]:
    """Return what makes the volumes, by their names."""
    volumes: dict[str, _MakeVolume] = {}
    for entry in spec.sections("volumes"):
        name = check_identifier("volume", entry.text("name"))
        # Kubernetes takes `emptyDir:` without a value for one that says nothing more.
        is_scratch = entry.has("emptyDir")
        scratch, path = entry.section("emptyDir"), entry.section("hostPath")
        scratch.ignore("sizeLimit")
        scratch.end()
        source = path.text("path")
        _check_host_path(path, source)
        entry.end()
        if is_scratch == bool(source):
            raise entry.error("is to be an emptyDir or a hostPath with a path")
        volumes[name] = _volume_maker(name, source)
    return volumes


def _volume_maker(name: str, source: str) -> _MakeVolume:
    def make(destination: str, read_only: bool, part: str) -> Volume:
        return Volume(destination, source, "" if source else name, part, read_only)

    return make


def _check_host_path(path: _Fields, source: str) -> None:
    path.only(type=("", "Directory", "File", "Socket", "CharDevice", "BlockDevice"))
    path.end()
    if source and (not source.startswith("/") or ".." in source.split("/")):
        raise path.error("must be absolute and without '..'", "path")


def _container(
    entry: _Fields,
    volumes: Mapping[str, _MakeVolume],
    identity: _Identity,
    ports: list[Port],
) -> ContainerPlan:
    name = check_identifier("container", entry.text("name"))
    image = entry.text("image")
    if not image:
        raise entry.error("is missing: the path of an image or of a root file system", "image")
    entry.only(imagePullPolicy=_PULL_POLICIES)
    entry.ignore("terminationMessagePath", "terminationMessagePolicy")
    environment = []
    for variable in entry.sections("env"):
        key = variable.text("name")
        if not key or "=" in key:
            raise variable.error("is no name of a variable", "name")
        environment.append((key, _ended(variable, variable.text("value"))))
    mounts = []
    for mount in entry.sections("volumeMounts"):
        known = volumes.get(wanted := mount.text("name"))
        if known is None:
            raise mount.error(f"the pod has no volume {wanted[:60]!r}", "name")
        part = mount.text("subPath")
        if part.startswith("/") or ".." in part.split("/"):
            raise mount.error("must be relative and without '..'", "subPath")
        destination = check_destination(mount.text("mountPath"))
        mounts.append(known(destination, mount.flag("readOnly"), part))
        mount.only(mountPropagation="None")
        mount.end()
    for port in entry.sections("ports"):
        _add_port(port, ports)
    memory, millis, shares = _resources(entry)
    security = entry.section("securityContext")
    uid = security.number("runAsUser", identity.uid)
    gid = security.number("runAsGroup", identity.gid)
    capabilities = security.section("capabilities")
    added, dropped = capabilities.texts("add") or (), capabilities.texts("drop") or ()
    capabilities.end()
    may_gain = security.flag("allowPrivilegeEscalation", True)
    read_only = security.flag("readOnlyRootFilesystem")
    must_not_be_root = security.flag("runAsNonRoot", identity.must_not_be_root)
    security.only(privileged=False)
    _check_seccomp(security)
    security.end()
    if gid is not None and uid is None:
        raise entry.error("needs runAsUser as well", "securityContext.runAsGroup")
    plan = ContainerPlan(
        name=name,
        image=_beside(entry.source, image),
        command=entry.texts("command"),
        arguments=entry.texts("args"),
        environment=tuple(environment),
        working_directory=entry.text("workingDir"),
        user="" if uid is None else f"{uid}" if gid is None else f"{uid}:{gid}",
        volumes=tuple(mounts),
        memory_bytes=memory,
        cpu_millis=millis,
        cpu_shares=shares,
        stdin=entry.flag("stdin"),
        terminal=entry.flag("tty"),
        read_only=read_only,
        capabilities_added=added,
        capabilities_dropped=dropped,
        may_gain_privileges=may_gain,
        must_not_be_root=must_not_be_root,
        further_groups=identity.groups,
    )
    entry.end()
    return plan


def _resources(entry: _Fields) -> tuple[int, int, int]:
    resources = entry.section("resources")
    limits, requests = resources.section("limits"), resources.section("requests")
    resources.end()
    memory, cpus, wanted = limits.amount("memory"), limits.amount("cpu"), requests.amount("cpu")
    requests.ignore("memory")
    limits.end()
    requests.end()
    where = f"{entry.source}: {entry.path}.resources"
    millis = parse_cpus(cpus, where) if cpus else 0
    shares = parse_cpus(wanted, where) if wanted else 0
    return (
        parse_memory(memory, where) if memory else 0,
        millis,
        max(2, shares * _SHARES_PER_CPU // 1000) if shares else 0,
    )


def _add_port(port: _Fields, ports: list[Port]) -> None:
    inside = port.number("containerPort") or 0
    host_port, host_ip = port.number("hostPort"), port.text("hostIP")
    protocol = port.text("protocol") or "TCP"
    port.ignore("name")
    port.end()
    if host_port:  # else it is nothing but information
        try:
            ports.append(check_port(Port(host_port, inside, protocol.lower(), host_ip)))
        except InvalidArgument as error:
            raise port.error(str(error)) from None


def _check_seccomp(security: _Fields) -> None:
    profile = security.section("seccompProfile")
    profile.only(type="RuntimeDefault")
    profile.end()


def _numbers(fields: _Fields, field: str) -> tuple[int, ...]:
    values = fields.take(field, list, [])
    if not all(type(value) is int and 0 <= value <= HIGHEST_ID for value in values):
        raise fields.error("is no list of numbers", field)
    return tuple(values)


def _ended(fields: _Fields, value: str) -> str:
    fields.end()
    return value


def _beside(manifest: str, image: str) -> str:
    """An image's path is relative to where the manifest is."""
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(manifest)), image))
