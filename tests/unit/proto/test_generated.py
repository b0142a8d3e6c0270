"""The committed modules of proto/gen are exactly what the .proto files generate."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GRPC_MODULES = {
    "containerd/services/namespaces/v1/namespaces_pb2_grpc.py",
    "containerd/services/sandbox/v1/sandbox_pb2_grpc.py",
    "containerd/services/sandbox/v1/store_pb2_grpc.py",
    "containerd/services/tasks/v1/tasks_pb2_grpc.py",
    "grpc/health/v1/health_pb2_grpc.py",
    "runtime/v1/service_pb2_grpc.py",
}


def _files(gen: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(gen)): path.read_bytes()
        for path in sorted(gen.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def test_regenerating_makes_no_difference(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "generate-protos"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    fresh, committed = _files(tmp_path / "proto" / "gen"), _files(ROOT / "proto" / "gen")
    assert sorted(fresh) == sorted(committed), "run `make proto` and commit the result"
    changed = [name for name, content in fresh.items() if content != committed[name]]
    assert not changed, "run `make proto` and commit the result"


def test_only_services_spoken_over_grpc_import_grpc() -> None:
    gen = ROOT / "proto" / "gen"
    importing = {
        str(path.relative_to(gen))
        for path in gen.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(name.name == "grpc" for name in node.names)
    }
    assert importing == GRPC_MODULES


@pytest.mark.parametrize("wrong", ["grpc", "proto.gen.runtime.v1.service_pb2"])
def test_the_pod_configuration_loads_without(wrong: str) -> None:
    """What the daemon imports must not bring in the client's half of CRI."""
    code = f"import sys, proto.gen.runtime.v1.api_pb2; sys.exit({wrong!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
