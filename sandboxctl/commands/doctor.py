"""Examine this node for the types that are configured, whether daemons run or not.

Exit code 0: pods of all these types can run; 1: something that they need is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import textwrap
from collections.abc import Sequence

from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.output import print_json
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.isolation import isolation_of


def add_arguments(_: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    findings = asyncio.run(_examine(find_daemons(arguments)))
    if arguments.as_json:
        print_json([_as_data(finding) for finding in findings])
    else:
        print_findings(findings)
    return int(any(finding.severity is Severity.ERROR for finding in findings))


async def _examine(daemons: Sequence[Daemon]) -> list[Finding]:
    async with Examination() as examination:
        findings = await examination.of_all_types()
        for daemon in daemons:
            findings += await isolation_of(daemon.type).examine(daemon.config, examination)
    return findings


def _as_data(finding: Finding) -> dict[str, str]:
    return {
        "severity": finding.severity.value,
        "subject": finding.subject,
        "found": finding.found,
        "advice": finding.advice,
    }


def print_findings(findings: list[Finding]) -> None:
    """Print a paragraph per finding, for a terminal or, 80 columns wide, a file."""
    columns = min(shutil.get_terminal_size((80, 24)).columns, 120)
    for finding in findings:
        text = f"{finding.severity:<8} {finding.subject}: {finding.found}"
        print(textwrap.fill(text, columns, subsequent_indent=" " * 9))
        if finding.advice:
            advice = f"-> {finding.advice}"
            print(textwrap.fill(advice, columns, initial_indent=" " * 9, subsequent_indent=" " * 12))
