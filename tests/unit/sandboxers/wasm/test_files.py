"""The names of the files of a container's processes."""

from __future__ import annotations

import itertools

from sandboxers.wasm.files import ProcessFiles

KINDS = ("request", "gate", "open_gate", "record")
IDS = ("", "a", "first", *("a." + end for end in ("pid", "request", "gate", "open", "json", "pid.json")))


def test_no_two_processes_have_a_file_in_common() -> None:
    paths = [getattr(ProcessFiles("/c", exec_id), kind) for exec_id, kind in itertools.product(IDS, KINDS)]
    named = [path for path in paths if path]
    assert len(named) == len(set(named)) == len(IDS) * len(KINDS) - 1
