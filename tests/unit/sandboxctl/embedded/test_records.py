"""What is on record of pods without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.records import UnreadableRecord, read_record, write_record
from sandboxctl.embedded.records import PodRecord

RECORD = PodRecord("a", "web", "runc", "/etc/sandboxd/runc.yaml", 1, 10.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"actor": [1]},
        {"actor": ["1", "2"]},
        {"actor": [1, 2, 3]},
        {"ports": [{"host_port": "80", "container_port": 80}]},
        {"ports": [{"port": 80}]},
        {"containers": [{"id": "c"}]},
        {"containers": ["c"]},
    ],
)
def test_what_could_not_be_used_is_not_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "pod.json"
    write_record(str(path), RECORD)
    assert read_record(str(path), PodRecord) == (RECORD, True)
    envelope = json.loads(path.read_text())
    envelope["record"] |= changes
    path.write_text(json.dumps(envelope))
    with pytest.raises(UnreadableRecord, match=r"is damaged: ."):
        read_record(str(path), PodRecord)
