"""How findings are printed."""

from __future__ import annotations

import pytest

from sandboxctl.findings import report_findings
from sandboxers.doctor import Finding, Severity


def test_findings_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(Severity.WARNING, "systemd", "word " * 60, "do " * 60)
    report_findings([finding], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("warning  systemd: word")
    assert any(line.startswith("         -> do") for line in lines)


def test_commands_are_not_torn_apart(capsys: pytest.CaptureFixture[str]) -> None:
    command = "scripts/fetch-vm-helpers /opt/sandboxd/vm"
    for words in range(20):
        report_findings([Finding(Severity.NOTE, "x", "y", "word " * words + command)], as_json=False)
        assert "fetch-vm-helpers" in capsys.readouterr().out
