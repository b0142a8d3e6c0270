"""What `sandboxctl run` needs beside daemons."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxctl.embedded import requirements
from sandboxctl.embedded.requirements import examine_embedded
from sandboxers.doctor import Examination, Severity


@pytest.mark.parametrize("there", [True, False])
async def test_what_is_missing_is_a_note_with_the_command_that_helps(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "PLUGIN_DIRECTORIES", [str(tmp_path)])
    if there:
        for name in ("umoci", "bridge"):
            (tmp_path / name).write_text("#!/bin/sh\necho umoci version 9\n")
            (tmp_path / name).chmod(0o755)
    async with Examination(path=str(tmp_path)) as examination:
        found = await examine_embedded(examination)
    assert [finding.severity for finding in found] == [Severity.OK if there else Severity.NOTE] * 2
    assert all(bool(finding.advice) is not there for finding in found)
    assert ("umoci version 9" in found[0].found) is there
