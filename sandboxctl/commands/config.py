"""Check configuration files, show the values in force, or list the keys that there are.

    check    read every file, and say what is wrong
    show     all values in force; those that are not the default are marked
    keys     every key with its default, kind of value and meaning

Exit code of check: 0: nothing is wrong; 1: something is.
"""

from __future__ import annotations

import argparse
import enum
import json
import sys
import textwrap
from typing import Any

from common.config import Described, describe
from common.errors import InvalidArgument, SandboxdError
from sandboxctl.daemons import Daemon, config_files, find_daemons
from sandboxctl.output import print_json, terminal_columns
from sandboxers.isolation import IsolationType, config_class_of, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check", "show", "keys"])
    parser.add_argument(
        "--type", choices=[kind.value for kind in IsolationType], help="list the keys of this one alone"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.type and arguments.action != "keys":
        raise InvalidArgument(
            f"config {arguments.action} is about files, not types: choose one with --config FILE"
        )
    if arguments.action == "check":
        return _check(arguments)
    if arguments.action == "show":
        _show(arguments)
    else:
        _list_keys(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    problems = {}
    for path in config_files(arguments):
        try:
            load_config(path)
            problems[path] = ""
        except SandboxdError as error:
            problems[path] = str(error)
    if not any(problems.values()):
        try:
            find_daemons(arguments)  # what is wrong with them together
        except SandboxdError as error:
            problems["together"] = str(error)
    if arguments.as_json:
        print_json([{"file": path, "problem": problem} for path, problem in problems.items()])
    for path, problem in problems.items():
        if problem:
            print(f"sandboxctl: {problem}", file=sys.stderr)
        elif not arguments.as_json:
            print(f"{path}: ok")
    return int(any(problems.values()))


def _show(arguments: argparse.Namespace) -> None:
    values = {daemon.config_file: _values(daemon) for daemon in find_daemons(arguments)}
    if arguments.as_json:
        print_json({path: {key.path: value for key, value in of_file} for path, of_file in values.items()})
        return
    for path, of_file in values.items():
        print(f"# {path}")
        for key, value in of_file:
            print(
                f"{key.path}: {json.dumps(value)}"
                + ("" if value == _plain(key.default) else "  # not the default")
            )


def _values(daemon: Daemon) -> list[tuple[Described, Any]]:
    return [(key, _value(daemon.config, key.path)) for key in describe(config_class_of(daemon.type))]


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return _plain(config)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _list_keys(arguments: argparse.Namespace) -> None:
    kinds = [IsolationType(arguments.type)] if arguments.type else list(IsolationType)
    keys = {kind: list(describe(config_class_of(kind))) for kind in kinds}
    if arguments.as_json:
        print_json(
            {
                kind.value: [{**key._asdict(), "default": _plain(key.default)} for key in of_type]
                for kind, of_type in keys.items()
            }
        )
        return
    columns = terminal_columns()
    for kind, of_type in keys.items():
        print(f"# {kind.value}")
        for key in of_type:
            print(f"{key.path}: {json.dumps(_plain(key.default))}  ({key.kind})")
            print(textwrap.fill(key.meaning, columns, initial_indent="    ", subsequent_indent="    "))
