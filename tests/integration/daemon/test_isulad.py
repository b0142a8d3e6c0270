"""iSulad as the engine of pods on the host's kernel."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.contract.fake_engine import FakeEngine
from tests.contract.isulad import IsuladContract
from tests.engine.handlers import Modules, ShellScripts
from tests.integration.daemon.isulad import Isulad, Sandbox, engine_of, pod_of
from tests.integration.daemon.lab import BASE, Daemon, Lab, until
from tests.modules import module

MODULES = f"{BASE}/modules"
# HTTP/2 (RFC 9113, 4.1): a length of 24 bits, the kind, flags, the stream.
FRAME = struct.Struct(">IBBI")
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 0x1, 0x4
_serial = itertools.count(1)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload), kind, flags, stream)[1:] + payload


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def isulad(lab: Lab) -> AsyncIterator[Isulad]:
    async with engine_of(Daemon(lab, "isulad", engine={"kind": "isulad"})) as isulad:
        yield isulad


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def isulad_for_modules(lab: Lab) -> AsyncIterator[Isulad]:
    lab.path(MODULES).mkdir()
    for name in ("say", "sleeper"):
        shutil.copy(module(name), lab.path(MODULES) / f"{name}.wasm")
    settings: dict[str, Any] = {
        "engine": {"kind": "isulad"},
        "modules": {"cache_dir": f"{BASE}/modules-cache"},
    }
    async with engine_of(Daemon(lab, "isulad-wasm", "wasm", **settings), MODULES, Modules.sleep) as isulad:
        yield isulad


class TestRunc(IsuladContract):
    """Plain containers."""

    programs = ShellScripts()
    execs = 50

    @pytest_asyncio.fixture(loop_scope="session")
    async def sandbox(self, isulad: Isulad, _nothing_is_left_or_disturbed: None) -> AsyncIterator[Sandbox]:
        async with pod_of(isulad) as sandbox:
            yield sandbox


class TestWasm(IsuladContract):
    """Modules: the same pods around another backend."""

    programs = Modules()
    execs = 10

    @pytest_asyncio.fixture(loop_scope="session")
    async def sandbox(
        self, isulad_for_modules: Isulad, _nothing_is_left_or_disturbed: None
    ) -> AsyncIterator[Sandbox]:
        async with pod_of(isulad_for_modules) as sandbox:
            yield sandbox


@pytest_asyncio.fixture(loop_scope="session")
async def sandbox(isulad: Isulad, _nothing_is_left_or_disturbed: None) -> AsyncIterator[Sandbox]:
    async with pod_of(isulad) as sandbox:
        yield sandbox


async def test_the_process_of_a_pod_lives_in_its_namespaces_and_costs_a_few_kib(
    sandbox: Sandbox, lab: Lab
) -> None:
    container = await sandbox.running("sleep", "1000")
    for kind in ("net", "ipc", "uts"):
        ours, containers = (
            os.stat(lab.path(f"/proc/{pid}/ns/{kind}")) for pid in (sandbox.pid, container.pid)
        )
        assert ours.st_ino == containers.st_ino, kind
    assert (
        os.stat(lab.path(f"/proc/{sandbox.pid}/ns/net")).st_ino
        == os.stat(lab.path(sandbox.netns_path.removeprefix("/var"))).st_ino
    )
    code, output, _ = await container.exec_sync("ps", "-o", "args")
    assert (code, b"pod-init" in output) == (0, False)
    rollup = lab.path(f"/proc/{sandbox.pid}/smaps_rollup").read_text()
    (pss,) = re.findall(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert int(pss) <= 32


async def test_a_pod_with_one_pid_namespace_tells_the_init_of_that(isulad: Isulad, lab: Lab) -> None:
    async with pod_of(isulad, pid=cri.POD) as sandbox:
        container = await sandbox.running("sleep", "1000")
        pids = (sandbox.pid, container.pid)
        init, first = (os.stat(lab.path(f"/proc/{pid}/ns/pid")).st_ino for pid in pids)
        assert init == first


async def test_a_pod_whose_process_was_killed_goes_on(sandbox: Sandbox, lab: Lab) -> None:
    container = await sandbox.running("sleep", "1000")
    end = sandbox.engine.wait(sandbox.id)
    lab.run("kill", "-9", str(sandbox.pid))
    await until(
        lambda: "sandbox.process_ended" in sandbox.engine.daemon.log_since(0), 20, "the daemon to notice"
    )
    another = await sandbox.running("sleep", "1000")
    hostnames = [(await each.exec_sync("hostname"))[1].decode().strip() for each in (container, another)]
    assert hostnames == [sandbox.id, sandbox.id]
    assert not end.done()


@pytest.mark.parametrize("holder", ["alive", "killed meanwhile"])
async def test_a_daemon_that_comes_back_is_found_by_platform_and_has_all_as_it_was(
    lab: Lab, holder: str, _nothing_is_left_or_disturbed: None
) -> None:
    daemon = Daemon(lab, f"isulad{next(_serial)}", engine={"kind": "isulad"})
    async with engine_of(daemon) as isulad, pod_of(isulad) as sandbox:
        container = await sandbox.running("sleep", "1000")
        end = isulad.wait(sandbox.id)
        daemon.stop(signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await end
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        if holder != "alive":
            lab.run("kill", "-9", str(sandbox.pid))
        await daemon.start()
        await isulad.until_platform("unknown")
        end = isulad.wait(sandbox.id)
        status = await isulad("Status", sandbox.id)
        assert (status.state, status.address) == ("SANDBOX_READY", sandbox.address)
        assert status.pid == (sandbox.pid if holder == "alive" else 0)
        await container.connect()
        assert (await container.task("State", id=container.id)).status == types.RUNNING
        await container.kill(0)
        assert (await container.exec_sync("hostname"))[1].decode().strip() == sandbox.id
        another = await sandbox.running("sleep", "1000")
        assert (await another.exec_sync("hostname"))[1].decode().strip() == sandbox.id
        assert not end.done()


async def test_nothing_is_ever_taken_for_forgotten(lab: Lab, _nothing_is_left_or_disturbed: None) -> None:
    """A containerd runs beside iSulad, knows nothing, and is not asked."""
    name = f"isulad{next(_serial)}"
    address = f"{BASE}/{name}/engine.sock"
    daemon = Daemon(
        lab,
        name,
        engine={"kind": "isulad", "address": address},
        gc={"interval_s": 0.01, "grace_s": 0.0},
    )
    containerd = await FakeEngine(str(lab.path(address))).start()
    async with engine_of(daemon) as isulad, pod_of(isulad) as sandbox:
        container = await sandbox.running("sleep", "1000")
        lab.run("rm", "-r", container.bundle)
        container.disconnect()
        command = [sys.executable, "-m", "sandboxctl", "--config", f"{daemon.base}/config.yaml", "gc"]
        run = await asyncio.to_thread(lab.namespaces.run, command, env=daemon.environment)
        assert "nothing is left over" in run.stdout
        assert "'engine.kind'" in run.stderr
        await container.connect()
        await container.kill(0)
        assert (await isulad("Status", sandbox.id)).state == "SANDBOX_READY"
    assert containerd.questions == []
    await containerd.stop()


async def test_http2_is_spoken_as_isulads_library_does(isulad: Isulad) -> None:
    """No other client can be made to say `:scheme https` and `:authority [::]` on a socket without TLS."""
    request = api.ControllerPlatformRequest(sandbox_id="unknown", sandboxer="runc").SerializeToString()
    fields = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/containerd.services.sandbox.v1.Controller/Platform"),
        (":authority", "[::]"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "tonic/0.7.2"),
    )
    # Literal fields that nobody indexes (RFC 7541, 6.2.2).
    block = b"".join(b"\0" + b"".join(bytes([len(t)]) + t.encode() for t in field) for field in fields)
    message = struct.pack(">BI", 0, len(request)) + request
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    sent += frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message)
    reader, writer = await asyncio.open_unix_connection(str(isulad.daemon.socket))
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            while True:
                length, kind, _, stream = FRAME.unpack(b"\0" + await reader.readexactly(FRAME.size - 1))
                payload = await reader.readexactly(length)
                if (kind, stream) == (DATA, 1):
                    break
        assert api.ControllerPlatformResponse.FromString(payload[5:]).platform.os == "linux"
    finally:
        writer.close()
