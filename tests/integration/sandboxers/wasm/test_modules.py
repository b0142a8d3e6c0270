"""Modules when something around them breaks: the fork server, the cache, what is compiled, who wants to know."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from common.cgroup import Hierarchies
from common.errors import InvalidArgument
from common.process.exits import ExitWatcher
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.launch import Missing, What
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules
from tests.integration.sandboxers.wasm.conftest import change_spec, create_prepared
from tests.modules import module

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.usefixtures("subreaper"),
]


async def test_a_profile_of_the_specification_is_the_filter(bench: Bench, modules: Modules) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["write", "writev"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    prepared = change_spec(bench, "c", ["sh", "-c", "echo x"], seccomp=profile)
    with pytest.raises(Exception, match="died"):
        # It cannot even say that it is ready.
        await create_prepared(bench, "c", prepared)
    broken = change_spec(bench, "d", ["true"], seccomp={"defaultAction": "SCMP_ACT_NOTIFY"})
    with pytest.raises(InvalidArgument, match="SCMP_ACT_NOTIFY"):
        await create_prepared(bench, "d", broken)


async def test_a_module_of_a_volume_runs_too(bench: Bench, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    shutil.copy(module("sh"), volume / "sh")
    prepared = bench.prepare("c", ["/mnt/deep/sh", "-c", "exit 6"])
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["mounts"].append({"destination": "/mnt/deep", "source": str(volume), "options": ["rbind", "ro"]})
    path.write_text(json.dumps(spec))
    stdio, output, source = await bench._streams(False)
    process = bench._watched(await bench.backend.create("c", prepared, stdio), stdio, output, source)
    await bench.backend.start("c", prepared)
    assert await process.code() == 6


async def test_a_cgroup_that_would_not_be_removed_is_not_made(bench: Bench) -> None:
    prepared = change_spec(bench, "c", ["true"], cgroupsPath="/sandboxd-anything")
    prepared = dataclasses.replace(prepared, cgroups_path="/sandboxd-anything")
    with pytest.raises(InvalidArgument, match=r"/sandboxd-anything must be named after .*/<parent>/c"):
        await create_prepared(bench, "c", prepared)
    assert Hierarchies.read().at("/sandboxd-anything").directories() == []


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {"module.wasm.image/variant": "compat"},
        {"module.wasm.image/variant": "compat-smart"},
        {"run.oci.handler": "wasm"},
    ],
)
async def test_a_module_is_one_whatever_annotations_say(bench: Bench, annotations: dict[str, str]) -> None:
    prepared = bench.prepare("c", ["sh", "-c", "exit 6"])
    path = Path(prepared.directory) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": annotations}))
    pid = await create_prepared(bench, "c", prepared)
    assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"


@pytest.mark.parametrize("annotation", ["module.wasm.image/variant", "run.oci.handler"])
async def test_a_program_is_none_whatever_annotations_say(
    bench: Bench, rootfs: Path, annotation: str
) -> None:
    (rootfs / "bin/native").write_bytes(b"\x7fELF" + bytes(60))
    prepared = bench.prepare("c", ["native"])
    path = Path(prepared.directory) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": {annotation: "wasm"}}))
    with pytest.raises(InvalidArgument, match="native program"):
        await create_prepared(bench, "c", prepared)


async def test_a_working_directory_that_is_missing_is_made(bench: Bench, rootfs: Path) -> None:
    prepared = bench.prepare("c", ["/bin/sleep", "60"])
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["cwd"] = "/srv/app"
    spec["root"]["readonly"] = True
    path.write_text(json.dumps(spec))
    pid = await create_prepared(bench, "c", prepared)
    assert os.readlink(f"/proc/{pid}/cwd") == "/srv/app"
    assert (rootfs / "srv/app").is_dir()


# -- what a module must not reach ----------------------------------------------------------------------


async def test_no_process_has_a_descriptor_of_a_directory_of_the_host(bench: Bench) -> None:
    first, _ = await bench.run("c", "sh", "-c", "echo up; cat")
    await first.expect(b"up\n")
    second = await bench.exec("c", "sh", "-c", "echo up; cat")
    await second.expect(b"up\n")
    for pid in (first.pid, second.pid):
        root = os.stat(f"/proc/{pid}/root/")
        opened = [os.stat(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        directories = [found for found in opened if stat.S_ISDIR(found.st_mode)]
        assert directories
        assert all(os.path.samestat(found, root) for found in directories)


class OverwrittenMeanwhile(Compiler):
    """A compiler before whose work somebody changes the module."""

    target: Path
    content: bytes

    async def compile(self, missing: Missing, source: int, pod: str) -> str:
        if missing.what == What.MODULE:
            self.target.write_bytes(self.content)
        return await super().compile(missing, source, pod)


async def test_who_overwrites_a_module_while_it_is_compiled_changes_nobody_elses(
    bench: Bench, modules: Modules, config: ModulesConfig, exits: ExitWatcher, rootfs: Path
) -> None:
    compiler = OverwrittenMeanwhile(config, modules.cache, exits, modules.server)
    compiler.target, compiler.content = rootfs / "mine", module("hello").read_bytes()
    compiler.target.write_bytes(module("sh").read_bytes())
    modules.backend._compiler = compiler
    own, _ = await bench.run("attacker", "/mine", "-c", "exit 3")
    assert await own.code() == 3
    other, _ = await bench.run("victim", "sh", "-c", "exit 4")
    assert await other.code() == 4


async def test_an_exec_is_killed_as_readily_as_its_container(bench: Bench) -> None:
    _, prepared = await bench.run("c", "sleep", "60")
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["oomScoreAdj"] = 500
    path.write_text(json.dumps(spec))
    process = await bench.exec("c", "sleep", "60")
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "500\n"
