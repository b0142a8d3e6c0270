"""Naming imports that an engine does not offer."""

from __future__ import annotations

import pytest

from common.errors import InvalidArgument
from sandboxers.wasm.engines.imports import refuse_imports


def test_no_unknown_imports_are_no_error() -> None:
    refuse_imports([])


def test_a_few_are_all_named() -> None:
    with pytest.raises(InvalidArgument, match=r"does not offer: env\.a, env\.b$"):
        refuse_imports(["env.a", "env.b"])


def test_of_many_some_are_named_and_the_others_counted() -> None:
    with pytest.raises(InvalidArgument, match=r": n0, n1, .*, n19 and 4981 more$"):
        refuse_imports([f"n{number}" for number in range(5001)])


def test_names_are_cut_and_cannot_write_to_a_terminal() -> None:
    with pytest.raises(InvalidArgument, match=r": a\?\[31m$"):
        refuse_imports(["a\x1b[31m"])
    with pytest.raises(InvalidArgument, match=r": x{100}\.\.\.$"):
        refuse_imports(["x" * 20_000])
