"""Which daemon this is."""

from __future__ import annotations

import json
from pathlib import Path

from common import log
from sandboxers.generation import next_generation


def test_each_daemon_of_a_boot_has_the_next_number(tmp_path: Path) -> None:
    assert [next_generation(str(tmp_path)) for _ in range(3)] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [".generation.json"]


def test_another_boot_begins_anew(tmp_path: Path) -> None:
    assert [next_generation(str(tmp_path)) for _ in range(2)] == [1, 2]
    path = tmp_path / ".generation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
    assert next_generation(str(tmp_path)) == 1


def test_neither_a_damaged_record_nor_a_missing_directory_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".generation.json").write_text("{")
    with log.capture() as lines:
        assert next_generation(str(tmp_path)) == 1
        assert next_generation(str(tmp_path / "missing")) == 1
    assert [line["event"] for line in lines] == ["generation.unreadable", "generation.not_recorded"]
    assert next_generation(str(tmp_path)) == 2
