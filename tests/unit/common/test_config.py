"""Configuration: YAML into dataclasses, and errors that say where and what."""

from __future__ import annotations

import enum
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config
from common.config import absolute_path, describe, document, load, option, parse, read_key
from common.errors import InvalidArgument, NotFound
from sandboxers.isolation import IsolationType, config_class_of
from sandboxers.runc.config import RuncConfig

ROOT = Path(__file__).parents[3]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of things."""

    ratio: float = option(0.5, "A share.", minimum=0.0, maximum=1.0)
    count: int = option(3, "How many.", minimum=1)


@dataclass(frozen=True, slots=True)
class Example:
    """An example."""

    name: str = option("x", "Its name.")
    enabled: bool = option(False, "Whether.")
    colour: Colour = option(Colour.RED, "Its colour.")
    tags: list[str] = option([], "Its tags.")
    ports: tuple[int, ...] = option((80, 443), "Its ports.")
    labels: dict[str, int] = option({}, "Its labels.")
    home: str | None = option(None, "Where it lives, if anywhere.", check=absolute_path)
    limits: Limits = Limits()


def error_of(text: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse(Example, text, "/etc/x.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "limits:\n", "limits: {}\n", "---\n"])
def test_what_is_left_out_has_its_default(text: str) -> None:
    assert parse(Example, text, "x") == Example()


def test_every_kind_of_value_is_read() -> None:
    text = """
    name: pod
    enabled: true
    colour: blue
    tags: [a, b]
    ports: [1, 2]
    labels: {a: 1}
    home: /srv
    limits: {ratio: 1, count: 9}
    """
    expected = Example("pod", True, Colour.BLUE, ["a", "b"], (1, 2), {"a": 1}, "/srv", Limits(1.0, 9))
    actual = parse(Example, text, "x")
    assert actual == expected
    assert type(actual.limits.ratio) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: x", "/etc/x.yaml: nam: unknown key; did you mean name?"),
        ("limits: {cuont: 1}", "/etc/x.yaml: limits.cuont: unknown key; did you mean limits.count?"),
        ("limits: {zzz: 1}", "/etc/x.yaml: limits.zzz: unknown key; known here: ratio, count"),
        ("7: x", "/etc/x.yaml: 7: unknown key; known here"),
        ("? [a]\n: x", "/etc/x.yaml: not valid YAML"),
        ("name: 3", "/etc/x.yaml: name: expected a string, found 3 (an integer)"),
        ("name: null", "/etc/x.yaml: name: expected a string, found null"),
        ("enabled: 1", "/etc/x.yaml: enabled: expected true or false, found 1 (an integer)"),
        (
            "limits: {count: true}",
            "/etc/x.yaml: limits.count: expected an integer, found True (true or false)",
        ),
        ("limits: {count: 1.5}", "/etc/x.yaml: limits.count: expected an integer, found 1.5 (a number)"),
        ("limits: {ratio: '1'}", "/etc/x.yaml: limits.ratio: expected a number, found '1' (a string)"),
        ("limits: {count: 0}", "/etc/x.yaml: limits.count: 0 is out of bounds, at least 1"),
        ("limits: {ratio: 2}", "/etc/x.yaml: limits.ratio: 2.0 is out of bounds, at least 0.0, at most 1.0"),
        ("limits: {ratio: .nan}", "/etc/x.yaml: limits.ratio: nan is out of bounds"),
        ("limits: 3", "/etc/x.yaml: limits: expected a section with keys, found 3 (an integer)"),
        ("colour: green", "/etc/x.yaml: colour: expected one of red, blue, found 'green' (a string)"),
        ("tags: a", "/etc/x.yaml: tags: expected a list, each item a string, found 'a' (a string)"),
        ("tags: [a, 1]", "/etc/x.yaml: tags[1]: expected a string, found 1 (an integer)"),
        ("labels: {a: b}", "/etc/x.yaml: labels.a: expected an integer, found 'b' (a string)"),
        ("home: relative", "/etc/x.yaml: home: must be an absolute path without '..', found 'relative'"),
        ("home: /a/../b", "/etc/x.yaml: home: must be an absolute path without '..'"),
        ("[a]", "/etc/x.yaml: expected a section with keys, found ['a'] (a list)"),
        ("name: [", "/etc/x.yaml: not valid YAML"),
        ("name: a\nname: b", "/etc/x.yaml: name: given twice, again in line 2"),
        ("limits:\n  count: 1\n  ratio: 1\n  count: 2", "/etc/x.yaml: count: given twice, again in line 4"),
        ("name: !!python/object/apply:os.system [id]", "/etc/x.yaml: not valid YAML"),
        ("name: !!bool x", "/etc/x.yaml: not valid YAML"),
        ("name: 2001-99-99", "/etc/x.yaml: not valid YAML"),
        ("[" * 5000, "/etc/x.yaml: n"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_is_wrong(text: str, message: str) -> None:
    assert error_of(text).startswith(message)


@given(st.text(max_size=200))
def test_any_text_gives_a_configuration_or_an_invalid_argument(text: str) -> None:
    try:
        parse(Example, text, "x")
    except InvalidArgument as error:
        assert str(error).startswith("x: ")


def test_a_long_value_is_shortened_in_an_error() -> None:
    assert len(error_of("limits: {count: " + "x" * 10_000 + "}")) < 200


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.yaml: no such file"):
        load(Example, f"{tmp_path}/absent.yaml")


def test_a_file_that_is_not_text_is_an_invalid_argument(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(Example, f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("text", "value"), [("type: vm\nodd: 1", "vm"), ("", "runc"), ("a: 1", "runc"), ("- x", "runc")]
)
def test_one_key_is_read_before_the_class_is_known(tmp_path: Path, text: str, value: str) -> None:
    (tmp_path / "x").write_text(text)
    assert read_key(f"{tmp_path}/x", "type", "runc") == value


def test_one_key_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("type: 3")
    with pytest.raises(InvalidArgument, match="type: expected a string, found 3"):
        read_key(f"{tmp_path}/x", "type", "runc")


def test_describe_lists_every_key_with_its_type_default_and_meaning() -> None:
    keys = {key.path: key for key in describe(Example)}
    assert list(keys)[-2:] == ["limits.ratio", "limits.count"]
    assert keys["limits.ratio"] == config.Described("limits.ratio", "a number", 0.5, "A share.")
    assert keys["home"].kind == "a string or null"


def test_the_documented_file_parses_to_the_defaults_and_shows_every_key() -> None:
    text = document(Example)
    assert parse(Example, text, "x") == Example()
    for key in describe(Example):
        assert f"# {key.meaning}\n" in text
        assert f"{key.path.rpartition('.')[2]}: " in text


@pytest.mark.parametrize("kind", list(IsolationType))
def test_the_shipped_file_of_a_type_is_what_its_dataclasses_document(kind: IsolationType) -> None:
    path, config_class = ROOT / f"configs/{kind.value}.yaml", config_class_of(kind)
    assert path.read_text(encoding="utf-8") == document(config_class), "run `make configs`"
    assert load(config_class, str(path)) == config_class()


@pytest.mark.parametrize(
    "text", ["type: wasm", "socket: run/x.sock", "state_dir: ''", "runtime: {binary: ../crun}"]
)
def test_runc_refuses_a_wrong_type_and_relative_paths(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(RuncConfig, text, "x")


def test_yaml_and_difflib_are_loaded_only_when_a_file_is_read() -> None:
    code = "import sys, sandboxers.runc.config; sys.exit('yaml' in sys.modules or 'difflib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
