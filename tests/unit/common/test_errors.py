"""Every error carries one canonical code, and the edges report nothing else."""

from __future__ import annotations

from itertools import pairwise

import grpc
import pytest

from common import errors
from common.errors import Code, NotFound, SandboxdError, status_of
from common.ttrpc import StatusCode

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, SandboxdError)]


def test_each_class_has_a_code_of_its_own() -> None:
    codes = sorted(c.code for c in CLASSES)
    assert all(a != b for a, b in pairwise(codes))
    assert Code.OK not in codes


def test_the_picture_of_the_hierarchy_names_every_class() -> None:
    assert errors.__doc__ is not None
    missing = [c.__name__ for c in CLASSES if c.__name__ not in errors.__doc__]
    assert missing == []


@pytest.mark.parametrize("code", list(Code))
def test_the_numbers_are_those_of_grpc_and_ttrpc(code: Code) -> None:
    assert grpc.StatusCode[code.name].value[0] == code.value
    assert StatusCode[code.name].value == code.value


@pytest.mark.parametrize("error", CLASSES)
def test_our_errors_are_reported_with_their_code_and_text(error: type[SandboxdError]) -> None:
    assert status_of(error("what, on what")) == (error.code, "what, on what")


def test_a_subclass_inherits_the_code() -> None:
    class Missing(NotFound):
        pass

    assert status_of(Missing("x"))[0] is Code.NOT_FOUND


def test_a_time_out_of_the_library_is_a_deadline() -> None:
    assert status_of(TimeoutError()) == (Code.DEADLINE_EXCEEDED, "timed out")
    assert status_of(TimeoutError("slow")) == (Code.DEADLINE_EXCEEDED, "slow")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("x"), AssertionError()])
def test_what_is_foreign_is_internal_and_named(error: Exception) -> None:
    code, text = status_of(error)
    assert code is Code.INTERNAL
    assert text.startswith(type(error).__name__)
    assert "Traceback" not in text
