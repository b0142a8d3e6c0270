"""What doctor tells of a node, whose programs are the test's own."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from common.cgroup import Hierarchies
from common.cgroup.locate import Hierarchy
from common.linux import features
from sandboxers import advisories
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.runc.config import RuncConfig, RuntimeConfig
from sandboxers.runc.doctor import examine


def install(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


async def of_all_types(subject: str, **node: Any) -> Finding:
    async with Examination(**node) as examination:
        return {finding.subject: finding for finding in await examination.of_all_types()}[subject]


async def of_runc(binary: str, **node: Any) -> Finding:
    async with Examination(**node) as examination:
        (finding,) = await examine(RuncConfig(runtime=RuntimeConfig(binary=binary)), examination)
        return finding


async def test_the_kernel_that_runs_is_named() -> None:
    assert (await of_all_types("kernel")).found == os.uname().release


async def test_exit_codes_are_tried_rather_than_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
    expected = Severity.OK if newest else Severity.WARNING
    assert (await of_all_types("exit codes")).severity is expected
    monkeypatch.setenv(features.VARIABLE, features.Feature.PIDFD_INFO)
    features.forced_off.cache_clear()
    try:
        finding = await of_all_types("exit codes")
    finally:
        monkeypatch.undo()
        features.forced_off.cache_clear()
    assert finding.severity is Severity.WARNING
    assert "supervise" in finding.advice


@pytest.mark.parametrize(
    ("version", "severity", "words"),
    [
        ("systemd 257 (257.13-1~deb13u1)", Severity.OK, "over stop and start"),
        ("systemd 254", Severity.OK, "over stop and start"),
        ("systemd 253.1", Severity.WARNING, "not over stop and start"),
        ("systemd 252 (252.38-1~deb12u1)", Severity.WARNING, "not over stop and start"),
        ("something else", Severity.WARNING, "does not tell its version"),
    ],
)
async def test_what_the_version_of_systemd_means_for_restarts(
    tmp_path: Path, version: str, severity: Severity, words: str
) -> None:
    install(tmp_path, "systemctl", f"echo '{version}'; echo +PAM +AUDIT")
    finding = await of_all_types("systemd", path=str(tmp_path), systemd_directory=str(tmp_path))
    assert (finding.severity, words in finding.found) == (severity, True)
    if "not over" in finding.found:
        assert "systemctl restart" in finding.advice


async def test_without_systemd_the_supervisor_is_advised() -> None:
    assert "--supervise" in (await of_all_types("systemd", systemd_directory="/nowhere")).advice


@pytest.mark.parametrize(
    ("mounted", "severity"),
    [
        ([""], Severity.OK),
        (["memory", "cpu", "pids"], Severity.OK),
        (["memory", "cpu", "pids", ""], Severity.WARNING),
        ([], Severity.ERROR),
    ],
    ids=["v2", "v1", "hybrid", "none"],
)
async def test_the_mode_of_cgroups(mounted: list[str], severity: Severity) -> None:
    hierarchies = Hierarchies({name: Hierarchy("/sys/fs/cgroup", "/") for name in mounted})
    finding = await of_all_types("cgroups", hierarchies=hierarchies)
    assert finding.severity is severity
    assert (severity is Severity.OK) == (finding.advice == "")


async def test_a_runtime_tells_its_version(tmp_path: Path) -> None:
    install(tmp_path, "crun", "echo crun version 99.1; echo commit: x")
    assert await of_runc("crun", path=str(tmp_path)) == Finding(
        Severity.OK, "OCI runtime", "crun version 99.1"
    )


@pytest.mark.parametrize("script", [None, "exit 3", "exec sleep 1000"], ids=["absent", "fails", "hangs"])
async def test_a_runtime_that_cannot_be_run_is_an_error_with_a_command(
    tmp_path: Path, script: str | None
) -> None:
    if script is not None:
        install(tmp_path, "ourrun", script)
    finding = await of_runc("ourrun", path=str(tmp_path), timeout_s=0.5)
    assert (finding.severity, "ourrun" in finding.found) == (Severity.ERROR, True)
    assert "apt-get install" in finding.advice


async def vulnerabilities(tmp_path: Path, package: str, version: str) -> list[Finding]:
    install(tmp_path, "dpkg-query", f"echo '{package}'; [ -n '{package}' ]")
    install(tmp_path, "runc", f"echo runc version {version}")
    async with Examination(path=str(tmp_path)) as examination:
        return await examination.vulnerabilities("runc", "runc", f"runc version {version}")


async def test_a_vulnerable_version_is_told_of_with_what_repairs_it(tmp_path: Path) -> None:
    (finding,) = await vulnerabilities(tmp_path, "", "1.1.11")
    assert finding.severity is Severity.WARNING
    assert "CVE-2024-21626" in finding.found and "1.3.3 or newer" in finding.advice
    assert await vulnerabilities(tmp_path, "", "1.3.3") == []


async def test_what_debian_has_repaired_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = frozenset(advisory.cve for advisory in advisories.ADVISORIES)
    monkeypatch.setattr(advisories, "_CHANGELOG", f"{tmp_path}/{{}}.gz")
    (unknown,) = await vulnerabilities(tmp_path, "runc: /usr/bin/runc", "1.1.11")
    assert unknown.severity is Severity.NOTE and "apt-get changelog runc" in unknown.advice
    with gzip.open(tmp_path / "runc.gz", "wt") as file:
        file.write("CVE-2024-21626\n")
    (rest,) = await vulnerabilities(tmp_path, "runc: /usr/bin/runc", "1.1.11")
    assert "CVE-2024-21626" not in rest.found and "--only-upgrade runc" in rest.advice
    with gzip.open(tmp_path / "runc.gz", "wt") as file:
        file.write("\n".join(everything))
    assert await vulnerabilities(tmp_path, "runc: /usr/bin/runc", "1.1.11") == []
