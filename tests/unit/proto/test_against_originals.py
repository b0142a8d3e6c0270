"""Every message, enum and service of ours equals its published original, field by field.

The originals are the .proto files of Debian's packages of containerd, CRI, cgroups, ttrpc and google.rpc,
which scripts/fetch-proto-originals brings, and that of grpc.health as grpcio-health-checking has it compiled.
Descriptors are compared, so comments and order are free.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as d
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[3]
ORIGINALS = ROOT / ".cache" / "proto-originals" / "usr" / "share" / "gocode" / "src"
CONTAINERD = "github.com/containerd/containerd/api"

# Our file -> the original that declares the same things.
COUNTERPARTS = {
    "cgroups/v1/metrics.proto": "github.com/containerd/cgroups/v3/cgroup1/stats/metrics.proto",
    "cgroups/v2/metrics.proto": "github.com/containerd/cgroups/v3/cgroup2/stats/metrics.proto",
    "containerd/events/task.proto": f"{CONTAINERD}/events/task.proto",
    "containerd/runc/v1/oci.proto": f"{CONTAINERD}/types/runc/options/oci.proto",
    "containerd/services/namespaces/v1/namespaces.proto": f"{CONTAINERD}/services/namespaces/v1/namespace.proto",
    "containerd/services/sandbox/v1/sandbox.proto": f"{CONTAINERD}/services/sandbox/v1/sandbox.proto",
    "containerd/services/sandbox/v1/store.proto": f"{CONTAINERD}/services/sandbox/v1/sandbox.proto",
    "containerd/services/tasks/v1/tasks.proto": f"{CONTAINERD}/services/tasks/v1/tasks.proto",
    "containerd/services/ttrpc/events/v1/events.proto": f"{CONTAINERD}/services/ttrpc/events/v1/events.proto",
    "containerd/task/v2/shim.proto": f"{CONTAINERD}/runtime/task/v2/shim.proto",
    "containerd/task/v3/shim.proto": f"{CONTAINERD}/runtime/task/v3/shim.proto",
    "containerd/types/event.proto": f"{CONTAINERD}/types/event.proto",
    "containerd/types/introspection.proto": f"{CONTAINERD}/types/introspection.proto",
    "containerd/types/metrics.proto": f"{CONTAINERD}/types/metrics.proto",
    "containerd/types/mount.proto": f"{CONTAINERD}/types/mount.proto",
    "containerd/types/platform.proto": f"{CONTAINERD}/types/platform.proto",
    "containerd/types/sandbox.proto": f"{CONTAINERD}/types/sandbox.proto",
    "containerd/types/task.proto": f"{CONTAINERD}/types/task/task.proto",
    "grpc/health/v1/health.proto": "grpc_health/v1/health.proto",
    "google/rpc/status.proto": "github.com/gogo/googleapis/google/rpc/status.proto",
    "runtime/v1/api.proto": "k8s.io/cri-api/pkg/apis/runtime/v1/api.proto",
    "runtime/v1/service.proto": "k8s.io/cri-api/pkg/apis/runtime/v1/api.proto",
    "ttrpc/request.proto": "github.com/containerd/ttrpc/request.proto",
}
# Large ones, whose messages and services may lack fields and methods. All others are whole.
PARTIAL = {
    "containerd/services/namespaces/v1/namespaces.proto",
    "containerd/services/sandbox/v1/store.proto",
    "containerd/services/tasks/v1/tasks.proto",
    "grpc/health/v1/health.proto",
    "runtime/v1/api.proto",
    "runtime/v1/service.proto",
}
# Debian's ttrpc replaces google.rpc.Status by a message without a package; on the wire no name appears.
RENAMED = {".Status": ".google.rpc.Status"}

Field = tuple[str, str, str, str, str | None, bool]  # name, type, label, type name, oneof, explicit presence
Method = tuple[str, str, bool, bool]


def _compile(files: list[str], include: list[str], output: Path) -> dict[str, d.FileDescriptorProto]:
    well_known = Path(protoc.__file__).parent / "_proto"
    flags = [*(f"-I{path}" for path in [*include, well_known]), f"--descriptor_set_out={output}"]
    assert protoc.main(["protoc", *flags, *files]) == 0, f"protoc does not compile {files}"
    return {file.name: file for file in d.FileDescriptorSet.FromString(output.read_bytes()).file}


def _compiled(module: str) -> d.FileDescriptorProto:
    """The descriptor in a generated module, which is not loaded: our messages bear the same names."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    data = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, bytes)]
    return d.FileDescriptorProto.FromString(max(data, key=len))


def _messages(prefix: str, declared: Iterable[d.DescriptorProto]) -> Iterator[tuple[str, d.DescriptorProto]]:
    for message in declared:
        name = f"{prefix}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _enums(file: d.FileDescriptorProto) -> dict[str, dict[str, int]]:
    scopes = [(file.package, file.enum_type)]
    scopes += [(name, message.enum_type) for name, message in _messages(file.package, file.message_type)]
    return {
        f"{scope}.{enum.name}": {value.name: value.number for value in enum.value}
        for scope, enums in scopes
        for enum in enums
    }


def _fields(message: d.DescriptorProto) -> dict[int, Field]:
    return {
        field.number: (
            field.name,
            d.FieldDescriptorProto.Type.Name(field.type),
            d.FieldDescriptorProto.Label.Name(field.label),
            RENAMED.get(field.type_name, field.type_name),
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
            field.proto3_optional,
        )
        for field in message.field
    }


def _methods(service: d.ServiceDescriptorProto) -> dict[str, Method]:
    return {
        method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
        for method in service.method
    }


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, d.FileDescriptorProto]:
    if not ORIGINALS.is_dir():
        reason = "the originals are missing: run scripts/fetch-proto-originals"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # ttrpc's files import each other relative to their own directory.
    include = [str(ORIGINALS), str(ORIGINALS / "github.com/containerd/ttrpc")]
    groups: list[list[str]] = [[], []]
    health = _compiled("grpc_health.v1.health_pb2")
    for original in sorted(set(COUNTERPARTS.values()) - {health.name}):
        groups["ttrpc/request" in original].append(original.removeprefix("github.com/containerd/ttrpc/"))
    directory = tmp_path_factory.mktemp("originals")
    containerd = _compile(groups[0], include[:1], directory / "containerd")
    ttrpc = _compile(groups[1], include[1:], directory / "ttrpc")
    return (
        {health.name: health}
        | containerd
        | {f"github.com/containerd/ttrpc/{name}": file for name, file in ttrpc.items()}
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, d.FileDescriptorProto]:
    files = [f"proto/gen/{name}" for name in COUNTERPARTS]
    include = [f"proto/gen={ROOT / 'proto'}"]
    compiled = _compile(files, include, tmp_path_factory.mktemp("ours") / "set")
    return {name.removeprefix("proto/gen/"): file for name, file in compiled.items()}


def test_every_proto_file_has_an_original_to_compare_with() -> None:
    source = ROOT / "proto"
    ours = f"{source}/sandboxd/"
    theirs = [path for path in source.rglob("*.proto") if not str(path).startswith(ours)]
    assert {str(path.relative_to(source)) for path in theirs} == set(COUNTERPARTS)


@pytest.mark.parametrize("name", COUNTERPARTS)
class TestEqualsTheOriginal:
    def test_in_its_messages_and_fields(
        self, name: str, ours: dict[str, d.FileDescriptorProto], originals: dict[str, d.FileDescriptorProto]
    ) -> None:
        file, original = ours[name], originals[COUNTERPARTS[name]]
        assert (file.package, file.syntax) == (original.package, original.syntax)
        published = dict(_messages(original.package, original.message_type))
        for message_name, message in _messages(file.package, file.message_type):
            assert message_name in published, f"{message_name} is not in {original.name}"
            expected, found = _fields(published[message_name]), _fields(message)
            if name in PARTIAL:
                expected = {number: field for number, field in expected.items() if number in found}
            assert found == expected, message_name
            assert message.options.map_entry == published[message_name].options.map_entry, message_name

    def test_in_its_enums(
        self, name: str, ours: dict[str, d.FileDescriptorProto], originals: dict[str, d.FileDescriptorProto]
    ) -> None:
        published = _enums(originals[COUNTERPARTS[name]])
        for enum, values in _enums(ours[name]).items():
            assert values == published[enum], enum

    def test_in_its_services(
        self, name: str, ours: dict[str, d.FileDescriptorProto], originals: dict[str, d.FileDescriptorProto]
    ) -> None:
        published = {service.name: _methods(service) for service in originals[COUNTERPARTS[name]].service}
        for service in ours[name].service:
            expected, found = published[service.name], _methods(service)
            if name in PARTIAL:
                expected = {method: types for method, types in expected.items() if method in found}
            assert found == expected, service.name


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", "kind"),
        ("number", 9),
        ("type", d.FieldDescriptorProto.TYPE_BYTES),
        ("label", d.FieldDescriptorProto.LABEL_REPEATED),
        ("type_name", ".x"),
        ("proto3_optional", True),
    ],
)
def test_a_wrong_field_would_be_noticed(
    attribute: str, value: object, ours: dict[str, d.FileDescriptorProto]
) -> None:
    mount = ours["containerd/types/mount.proto"].message_type[0]
    wrong = d.DescriptorProto.FromString(mount.SerializeToString())
    setattr(wrong.field[0], attribute, value)
    assert _fields(wrong) != _fields(mount)
