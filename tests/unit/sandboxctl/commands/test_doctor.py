"""How findings are printed."""

from __future__ import annotations

import pytest

from sandboxctl.commands.doctor import print_findings
from sandboxers.doctor import Finding, Severity


def test_findings_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(Severity.WARNING, "systemd", "word " * 60, "do " * 60)
    print_findings([finding])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("warning  systemd: word")
    assert any(line.startswith("         -> do") for line in lines)
