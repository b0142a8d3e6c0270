"""The stub runtime binary, run as the program that containerd executes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any as Json

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from proto.gen.containerd.runc.v1.oci_pb2 import Options
from proto.gen.containerd.task.v2.shim_pb2 import DeleteResponse
from proto.gen.containerd.types.introspection_pb2 import RuntimeInfo
from sandboxers import shim_stub

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ["-namespace", "k8s.io", "-address", "/run/a.sock", "-publish-binary", "/bin/p", "-id", "c1"]
OWN_FEATURES = {"ociVersionMin": "1.0.0", "ociVersionMax": "1.2.0", "linux": {"namespaces": ["pid"]}}


def _stub(
    *arguments: str, stdin: bytes = b"", interpreter: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != shim_stub.RUNTIME_VARIABLE}
    return subprocess.run(
        [sys.executable, *interpreter, "-m", "sandboxers.shim_stub", *arguments],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=environment | variables,
        timeout=30,
        check=False,
    )


def _runtime(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _printing(path: Path, document: object) -> str:
    return _runtime(path, f"[ \"$1\" = features ] && echo '{json.dumps(document)}'")


def _options(message_type: str, binary_name: str) -> bytes:
    value = Options(binary_name=binary_name).SerializeToString()
    return Any(type_url=message_type, value=value).SerializeToString()


def _features(done: subprocess.CompletedProcess[bytes]) -> dict[str, Json]:
    assert done.returncode == 0, done.stderr.decode()
    info = RuntimeInfo.FromString(done.stdout)
    assert info.name == "io.containerd.sandboxd.v1"
    assert info.features.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    features: dict[str, Json] = json.loads(info.features.value)
    return features


class TestDelete:
    def test_answers_as_if_the_task_had_been_killed_now(self) -> None:
        before = time.time()
        done = _stub(*FLAGS, "-bundle", "/run/bundle", "delete")
        assert done.returncode == 0, done.stderr.decode()
        response = DeleteResponse.FromString(done.stdout)
        assert (response.pid, response.exit_status) == (0, 137)
        assert before - 1 <= response.exited_at.seconds <= time.time()

    def test_touches_nothing_and_can_be_repeated(self, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text("{}")
        for _ in range(2):
            assert _stub(*FLAGS, "-bundle", str(bundle), "delete").returncode == 0
        assert [path.name for path in bundle.iterdir()] == ["config.json"]

    def test_works_without_any_installed_package(self) -> None:
        """Its whole import budget: the standard library, and of that only what `-X importtime` lists."""
        done = _stub(*FLAGS, "delete", interpreter=("-S", "-X", "importtime"))
        assert done.returncode == 0
        for heavy in (b"asyncio", b"subprocess", b"google", b"json", b"typing", b"common"):
            assert b"| " + heavy not in done.stderr

    @given(st.integers(min_value=0, max_value=2**63 - 1))
    def test_encodes_every_time_as_protobuf_does(self, now_ns: int) -> None:
        expected = DeleteResponse(exit_status=137)
        expected.exited_at.seconds, expected.exited_at.nanos = divmod(now_ns, 10**9)
        assert DeleteResponse.FromString(shim_stub.delete_response(now_ns)) == expected


class TestInfo:
    def test_prints_the_features_of_the_configured_runtime(self, tmp_path: Path) -> None:
        runtime = _printing(tmp_path / "oci", OWN_FEATURES)
        assert _features(_stub("-info", SANDBOXD_OCI_RUNTIME=runtime)) == OWN_FEATURES

    def test_prefers_the_binary_named_in_the_options(self, tmp_path: Path) -> None:
        other = _printing(tmp_path / "other", {"linux": {}})
        named = _options("containerd.runc.v1.Options", _printing(tmp_path / "oci", OWN_FEATURES))
        assert _features(_stub("-info", stdin=named, SANDBOXD_OCI_RUNTIME=other)) == OWN_FEATURES

    def test_ignores_options_of_another_type(self, tmp_path: Path) -> None:
        runtime = _printing(tmp_path / "oci", OWN_FEATURES)
        other = _options("runtimeoptions.v1.Options", "/nonexistent")
        assert _features(_stub("-info", stdin=other, SANDBOXD_OCI_RUNTIME=runtime)) == OWN_FEATURES

    @pytest.mark.parametrize(("name", "idmap"), [("crun", True), ("crun-1.8", True), ("runc", False)])
    @pytest.mark.parametrize(
        "script", ["echo unknown command features >&2; exit 1", "echo not json", "echo '{}'", "echo '[]'"]
    )
    def test_describes_a_runtime_that_cannot_describe_itself(
        self, name: str, idmap: bool, script: str, tmp_path: Path
    ) -> None:
        features = _features(_stub("-info", SANDBOXD_OCI_RUNTIME=_runtime(tmp_path / name, script)))
        assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is idmap
        assert "user" in features["linux"]["namespaces"]
        assert {"rbind", "ro", "tmpcopyup"} <= set(features["mountOptions"])
        assert "rro" not in features["mountOptions"]
        assert features["ociVersionMin"] <= features["ociVersionMax"]

    def test_needs_no_options_no_runtime_and_no_stdin(self) -> None:
        assert _features(_stub("-info"))["linux"]
        command = f"exec {sys.executable} -m sandboxers.shim_stub -info <&-"
        closed = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, check=False)
        assert _features(closed)["linux"]

    @pytest.mark.parametrize("content", [None, b"", b"\x7fELF"])
    def test_names_a_configured_runtime_that_cannot_run(self, content: bytes | None, tmp_path: Path) -> None:
        runtime = tmp_path / "crun"
        if content is not None:
            runtime.write_bytes(content)
            runtime.chmod(0o755)
        done = _stub("-info", SANDBOXD_OCI_RUNTIME=str(runtime))
        assert (done.returncode, done.stdout) == (1, b"")
        assert str(runtime).encode() in done.stderr and b"Traceback" not in done.stderr

    def test_refuses_options_that_are_not_protobuf(self) -> None:
        done = _stub("-info", stdin=b"\xff\xff\xff")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"options" in done.stderr and b"Traceback" not in done.stderr


def test_start_fails_and_says_which_setting_is_missing() -> None:
    done = _stub(*FLAGS, "start")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b'sandboxer = "<type>"' in done.stderr


@pytest.mark.parametrize("arguments", [[], ["-v"], ["delete", "-id"]])
def test_anything_else_is_a_usage_error(arguments: list[str]) -> None:
    done = _stub(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage")
