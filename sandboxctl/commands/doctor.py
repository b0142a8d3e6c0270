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
from sandboxers.isolation import IsolationType, config_class_of, examine_of, load_config
from sandboxers.leftovers import Survey


def add_arguments(_: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    findings = asyncio.run(_examine(arguments))
    report_findings(findings, as_json=arguments.as_json)
    return int(has_errors(findings))


async def _examine(arguments: argparse.Namespace) -> list[Finding]:
    async with Examination() as examination:
        findings = [*await examination.of_all_types(), *await examine_embedded(examination)]
        try:
            paths = config_files(arguments)
        except NotFound as error:
            findings.append(
                Finding(Severity.NOTE, "configuration", f"{error}; all types are examined as they come")
            )
            for kind in IsolationType:
                config = config_class_of(kind)()
                findings += _named(kind, await examine_of(kind)(config, examination))
            return findings
        for path in paths:
            try:
                kind, config = load_config(path)
            except SandboxdError as error:
                findings.append(
                    Finding(Severity.ERROR, "configuration", str(error), "sandboxctl config keys")
                )
                continue
            daemon = Daemon(kind, path, config)
            of_its_type = await examine_of(kind)(config, examination)
            findings += _named(kind, [*of_its_type, _daemon_finding(daemon), *await _leaks(daemon)])
    return findings


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
