"""Installing drop-ins: nothing of others is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE
from sandboxctl.main import main


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two configured types, and where containerd's drop-ins go."""
    monkeypatch.setenv(CONFIG_DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "runc.yaml").write_text(f"type: runc\nsocket: {tmp_path}/runc.sock\n")
    (tmp_path / "qemu.yaml").write_text("type: qemu\nqemu:\n  qemu: /no/such/qemu\n")
    return tmp_path


def test_drop_ins_are_written_once_and_over_nothing_else(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["containerd", "install", "--type", "runc", "--directory", str(node / "conf.d"), "--json"]
    path = node / "conf.d/sandboxd-runc.toml"

    def install(*words: str) -> tuple[int, str]:
        status = main([*command, *words])
        out = capsys.readouterr().out
        return status, json.loads(out)[0]["result"] if out else ""

    assert install() == (0, "written")
    assert f'address = "{node}/runc.sock"' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert install() == (0, "as it should be")
    path.write_text("mine")
    assert install() == (1, "")
    assert path.read_text() == "mine"
    assert install("--force") == (0, "written")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_type_that_this_node_cannot_run_is_left_out(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["containerd", "print"]) == 0
    printed = capsys.readouterr()
    assert "proxy_plugins.qemu" not in printed.out
    assert "qemu is left out" in printed.err
    assert main(["containerd", "print", "--kubernetes", "--type", "qemu", "--type", "wasm"]) == 0
    assert capsys.readouterr().out.count("kind: RuntimeClass") == 2
