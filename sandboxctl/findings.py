"""Findings as people and programs read them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from sandboxctl.output import print_json, terminal_columns
from sandboxers.doctor import Finding, Severity


def has_errors(findings: Sequence[Finding]) -> bool:
    """Tell whether something keeps pods from running."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def report_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print a paragraph per finding, for a terminal or, 80 columns wide, a file; or JSON."""
    if as_json:
        print_json([{**asdict(finding), "severity": finding.severity.value} for finding in findings])
        return
    columns = terminal_columns()
    for finding in findings:
        print(_paragraph(f"{finding.severity:<8} {finding.subject}: {finding.found}", columns, " " * 9))
        if finding.advice:
            print(_paragraph(f"{' ' * 9}-> {finding.advice}", columns, " " * 12))


def _paragraph(text: str, columns: int, indent: str) -> str:
    # Commands are to be copied: neither a path nor an option is torn apart.
    return textwrap.fill(
        text, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
