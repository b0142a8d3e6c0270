"""Examine this node for the types that are configured, or for all if none is, whether daemons run or not.

What is missing or too old is told with the command that helps; what the kernel lacks with what is done instead; then
known vulnerabilities, and what is left over of pods.

Exit code 0: pods of all these types can run; 1: something that they need is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace

from common.errors import NotFound, SandboxdError
from sandboxctl.daemons import Daemon, config_files
from sandboxctl.embedded.requirements import examine_embedded
from sandboxctl.findings import has_errors, report_findings
from sandboxctl.ownership import list_owned
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.isolation import DaemonConfig, IsolationType, config_class_of, examine_of, load_config
from sandboxers.leftovers import Survey


def add_arguments(_: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    findings = asyncio.run(_examine(arguments))
    report_findings(findings, as_json=arguments.as_json)
    return int(has_errors(findings))


async def _examine(arguments: argparse.Namespace) -> list[Finding]:
    async with Examination() as examination:
        # All at once: most of it is waiting for what programs say of themselves.
        looks = [examination.of_all_types(), examine_embedded(examination)]
        try:
            looks += [_examine_file(path, examination) for path in config_files(arguments)]
        except NotFound as error:
            looks.append(_no_file(f"{error}; all types are examined as they come"))
            looks += [_examine_type(kind, config_class_of(kind)(), examination) for kind in IsolationType]
        return [finding for findings in await asyncio.gather(*looks) for finding in findings]


async def _no_file(text: str) -> list[Finding]:
    return [Finding(Severity.NOTE, "configuration", text)]


async def _examine_file(path: str, examination: Examination) -> list[Finding]:
    try:
        kind, config = load_config(path)
    except SandboxdError as error:
        return [Finding(Severity.ERROR, "configuration", str(error), "sandboxctl config keys")]
    daemon = Daemon(kind, path, config)
    of_its_type = await _examine_type(kind, config, examination)
    return [*of_its_type, *_named(kind, [_daemon_finding(daemon), *await _leaks(daemon)])]


async def _examine_type(kind: IsolationType, config: DaemonConfig, examination: Examination) -> list[Finding]:
    return _named(kind, await examine_of(kind)(config, examination))


def _named(kind: IsolationType, findings: list[Finding]) -> list[Finding]:
    return [replace(finding, subject=f"{kind.value}: {finding.subject}") for finding in findings]


def _daemon_finding(daemon: Daemon) -> Finding:
    if daemon.is_running():
        return Finding(Severity.OK, "daemon", f"serves {daemon.config.socket}")
    return Finding(
        Severity.WARNING,
        "daemon",
        f"none serves {daemon.config.socket}",
        f"systemctl enable --now sandboxd@{daemon.type.value}",
    )


async def _leaks(daemon: Daemon) -> list[Finding]:
    """Compare records, host and engine as `gc` does, without taking anything from a daemon that may be starting."""
    config = daemon.config
    if not os.path.isdir(config.state_dir):
        return []

    survey = Survey(config.state_dir, config.gc.grace_s, lambda: list_owned(daemon), None)
    leftovers = await survey.find()
    findings = []
    if survey.engine_error:
        advice = "sandboxctl containerd check" if config.engine.asked_at else ""
        findings.append(Finding(Severity.NOTE, "engine", survey.engine_error, advice))
    if not leftovers:
        return [*findings, Finding(Severity.OK, "leaks", "none")]
    names = ", ".join(sorted({leftover.what for leftover in leftovers}))
    return [*findings, Finding(Severity.WARNING, "leaks", f"{len(leftovers)}: {names}", "sandboxctl gc")]
