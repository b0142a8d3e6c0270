"""Configuration files: YAML into frozen dataclasses, and the documented file out of the same dataclasses.

A configuration is a tree of dataclasses whose fields are made by `option` (a value with a meaning) or are
nested dataclasses (a section). `parse` and `document` are inverse to each other: the file that `document`
writes holds every key with its default and its meaning, and parses to the defaults. Every error is an
`InvalidArgument` that names the file, the dotted key and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from common.errors import InvalidArgument, NotFound
from common.identifiers import UNIX_PATH_MAX_BYTES

ConfigT = TypeVar("ConfigT")

_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


class Described(NamedTuple):
    """One key of a configuration: its dotted path, its type in words, its default and its meaning."""

    path: str
    kind: str
    default: Any
    meaning: str


def option(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    check: Callable[[Any], str] | None = None,
) -> Any:
    """Declare a key: default, meaning, inclusive bounds, and a check that returns what is wrong or ''."""
    metadata = {"meaning": meaning, "minimum": minimum, "maximum": maximum, "check": check}
    if isinstance(default, Hashable):
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)


def absolute_path(value: str) -> str:
    """Check for `option`: the value is an absolute path without a `..` component."""
    if value.startswith("/") and ".." not in value.split("/"):
        return ""
    return "must be an absolute path without '..'"


def socket_path(value: str) -> str:
    """Check for `option`: the value is an absolute path, short enough for a unix socket (unix(7))."""
    return absolute_path(value) or at_most_bytes(value, UNIX_PATH_MAX_BYTES)


def at_most_bytes(value: str, limit: int) -> str:
    """Return what is wrong with a text that is longer, or ''."""
    length = len(value.encode(errors="replace"))
    return f"must be at most {limit} bytes long, which are {length}" if length > limit else ""


def load(config_class: type[ConfigT], path: str) -> ConfigT:
    """Read a file; raises NotFound where there is none, else what `parse` raises."""
    return parse(config_class, _read_file(path), path)


def read_key(path: str, key: str, default: str) -> str:
    """Return one top-level string of a file, which says what class the file is of; raises like `load`."""
    values = read_yaml(path)
    value = values.get(key, default) if isinstance(values, dict) else default
    if not isinstance(value, str):
        raise _error(path, key, f"expected {_kind(str)}, found {_found(value)}")
    return value


def parse(config_class: type[ConfigT], text: str, source: str) -> ConfigT:
    """Build a configuration from YAML; `source` names it in errors. An empty text gives the defaults.

    Raises InvalidArgument: not YAML, a key that is unknown or given twice, a value of the wrong type or out
    of bounds.
    """
    return typing.cast(ConfigT, _section(config_class, _read_yaml(text, source), "", source))


def describe(config_class: type[Any]) -> Iterator[Described]:
    """Yield every key in the order of declaration."""
    for field, hint, path in _walk(config_class, ""):
        yield Described(path, _kind(hint), _default(field), field.metadata["meaning"])


def document(config_class: type[Any]) -> str:
    """Return the YAML text that gives every key its default, with its meaning, type and bounds above it."""
    lines = _comment(config_class.__doc__ or "", "")
    _document_section(config_class, "", lines)
    return "\n".join(lines) + "\n"


def _document_section(config_class: type[Any], indent: str, lines: list[str]) -> None:
    hints = typing.get_type_hints(config_class)
    for number, field in enumerate(dataclasses.fields(config_class)):
        hint = hints[field.name]
        if number or not indent:
            lines.append("")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            lines += _comment(hint.__doc__ or "", indent)
            lines.append(f"{indent}{field.name}:")
            _document_section(hint, indent + "  ", lines)
        else:
            lines += _comment(field.metadata["meaning"], indent)
            lines.append(f"{indent}# ({_kind(hint)}{_bounds(field)})")
            lines.append(f"{indent}{field.name}: {_flow(_default(field))}")


def _comment(text: str, indent: str) -> list[str]:
    import textwrap

    prefix = f"{indent}# "
    return textwrap.wrap(" ".join(text.split()), 100, initial_indent=prefix, subsequent_indent=prefix)


def _flow(value: Any) -> str:
    import json

    # A JSON value is a YAML flow value.
    return str(value.value) if isinstance(value, enum.Enum) else json.dumps(value)


def _walk(config_class: type[Any], prefix: str) -> Iterator[tuple[dataclasses.Field[Any], Any, str]]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _walk(hint, path + ".")
        else:
            yield field, hint, path


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


# ------------------------------------------------------------------------------- values


def _section(config_class: type[Any], value: Any, path: str, source: str) -> Any:
    if value is None:  # a section whose keys are all commented out
        value = {}
    if not isinstance(value, Mapping):
        raise _error(source, path, f"expected a section with keys, found {_found(value)}")
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values = {}
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise _error(source, inner, "unknown key" + _nearest(str(key), path, list(fields)))
        values[key] = _value(hints[key], item, inner, source)
        _check_bounds(fields[key], values[key], inner, source)
    return config_class(**values)


def _value(hint: Any, value: Any, path: str, source: str) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _section(hint, value, path, source)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if member.value == value and type(value) is not bool:
                return member
    elif (origin := typing.get_origin(hint)) in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
        if value is None:
            return None
        return _value(inner, value, path, source)
    elif origin in (list, tuple):
        if isinstance(value, list):
            inner = typing.get_args(hint)[0]
            return origin(_value(inner, item, f"{path}[{index}]", source) for index, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return {
                _value(str, key, f"{path}.{key}", source): _value(
                    typing.get_args(hint)[1], item, f"{path}.{key}", source
                )
                for key, item in value.items()
            }
    elif type(value) is hint:  # exactly: `true` is no integer
        return value
    elif hint is float and type(value) is int:
        return float(value)
    raise _error(source, path, f"expected {_kind(hint)}, found {_found(value)}")


def _check_bounds(field: dataclasses.Field[Any], value: Any, path: str, source: str) -> None:
    metadata = field.metadata
    if value is None or not metadata:
        return
    minimum, maximum, check = metadata["minimum"], metadata["maximum"], metadata["check"]
    # Negated comparisons, so that "not a number" is out of bounds as well.
    if (minimum is not None and not value >= minimum) or (maximum is not None and not value <= maximum):
        raise _error(source, path, f"{value!r} is out of bounds{_bounds(field)}")
    if check and (complaint := check(value)):
        raise _error(source, path, f"{complaint}, found {_found(value)}")


def _bounds(field: dataclasses.Field[Any]) -> str:
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
    lower = f", at least {minimum}" if minimum is not None else ""
    return lower + (f", at most {maximum}" if maximum is not None else "")


def _kind(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"a list, each item {_kind(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {_kind(arguments[1])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _found(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    kind = "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else ""
    kind = kind or _NAMES.get(type(value), type(value).__name__)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"


def _nearest(key: str, path: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {path + '.' if path else ''}{near[0]}?"
    return f"; known here: {', '.join(known)}"


def _error(source: str, path: str, complaint: str) -> InvalidArgument:
    return InvalidArgument(f"{source}: {path}: {complaint}" if path else f"{source}: {complaint}")


# ------------------------------------------------------------------------------- YAML


def _read_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: cannot be read: {error}") from error


def read_yaml(path: str) -> Any:
    """Return what a YAML file says, in which no key may be given twice.

    :raise NotFound, InvalidArgument: there is no such file, or it is no YAML.
    """
    return _read_yaml(_read_file(path), path)


def _read_yaml(text: str, source: str) -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class UniqueKeyLoader(base):  # type: ignore[misc]
        """Refuses a key given twice, of which YAML parsers silently keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key_node, _ in node.value:
                if isinstance(key := key_node.value, str):
                    if key in seen:
                        line = key_node.start_mark.line + 1
                        raise InvalidArgument(f"{source}: {key}: given twice, again in line {line}")
                    seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, UniqueKeyLoader)
    except InvalidArgument:
        raise
    except Exception as error:  # YAMLError, and what its constructors let through: `!!bool x` is a KeyError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidArgument(f"{source}: not valid YAML: {reason[:500]}") from error
