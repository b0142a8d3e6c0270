"""What doctor looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE
from sandboxctl.main import main


def findings(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    monkeypatch.setenv(CONFIG_DIRECTORY_VARIABLE, str(directory))
    main(["doctor", "--json"])
    return {finding["subject"]: finding["severity"] for finding in json.loads(capsys.readouterr().out)}


def test_without_configuration_all_types_are_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(tmp_path, monkeypatch, capsys)
    assert found["configuration"] == "note"
    assert {"runc: OCI runtime", "wasm: module engine", "qemu: QEMU"} <= found.keys()


def test_a_file_that_cannot_be_used_hides_no_other(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (short_path / "a.yaml").write_text("typ: runc\n")
    (short_path / "b.yaml").write_text(
        f"type: runc\nstate_dir: {short_path}/state\nsocket: {short_path}/api.sock\n"
    )
    found = findings(short_path, monkeypatch, capsys)
    assert (found["configuration"], found["runc: daemon"]) == ("error", "warning")
