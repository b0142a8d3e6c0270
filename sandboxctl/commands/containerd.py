"""Let containerd use the daemons of this node, or find out why it does not.

    print    the drop-in of each type, or with --kubernetes its RuntimeClass
    install  write the drop-ins where containerd reads them
    check    compare containerd's configuration with the daemons'

Without --type it is about every configured type that this node can run, and the others are told of.

Exit code of check: 0: pods reach the daemons; 1: something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from common.errors import AlreadyExists, NotFound
from sandboxctl.daemons import Daemon, find_daemons
from sandboxctl.drop_ins import drop_in, runtime_class
from sandboxctl.findings import has_errors, report_findings
from sandboxctl.output import print_json
from sandboxers.doctor import Examination, Severity
from sandboxers.isolation import IsolationType, config_class_of, examine_of

_DIRECTORY = "/etc/containerd/conf.d"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["print", "install", "check"])
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        choices=[kind.value for kind in IsolationType],
        dest="types",
        help="only this one; may be repeated",
    )
    parser.add_argument(
        "--kubernetes", action="store_true", help="print RuntimeClasses, for kubectl apply -f -"
    )
    parser.add_argument(
        "--directory", default=_DIRECTORY, metavar="DIR", help="where to install (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="install over files that differ")
    parser.add_argument(
        "--dump",
        metavar="FILE",
        help="check what `containerd config dump` has written there, instead of running it",
    )


def run(arguments: argparse.Namespace) -> int:
    daemons = _chosen(arguments)
    if arguments.action == "check":
        from sandboxctl.containerd import examine_containerd

        findings = asyncio.run(examine_containerd(daemons, arguments.dump))
        report_findings(findings, as_json=arguments.as_json)
        return int(has_errors(findings))
    if not arguments.types:
        daemons = asyncio.run(_runnable(daemons))
    if arguments.action == "print":
        texts = [
            runtime_class(daemon.type) if arguments.kubernetes else drop_in(daemon.type, daemon.config.socket)
            for daemon in daemons
        ]
        if arguments.as_json:
            print_json([{"type": d.type.value, "text": text} for d, text in zip(daemons, texts, strict=True)])
        else:
            print(("---\n" if arguments.kubernetes else "\n").join(texts), end="")
    else:
        _install(daemons, arguments)
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Daemon]:
    """Return the daemons that the command line is about; a type that is named may lack a configuration."""
    try:
        daemons = list(find_daemons(arguments))
    except NotFound:
        if not arguments.types or arguments.config_files:
            raise
        daemons = []
    if not arguments.types:
        return daemons
    chosen = [daemon for daemon in daemons if daemon.type.value in arguments.types]
    configured = {daemon.type for daemon in chosen}
    kinds = [IsolationType(name) for name in dict.fromkeys(arguments.types)]
    return chosen + [Daemon(kind, "", config_class_of(kind)()) for kind in kinds if kind not in configured]


async def _runnable(daemons: list[Daemon]) -> list[Daemon]:
    """Return those whose pods can run here, and say of the others why they cannot."""
    runnable = []
    async with Examination() as examination:
        for daemon in daemons:
            findings = await examine_of(daemon.type)(daemon.config, examination)
            missing = [finding.subject for finding in findings if finding.severity is Severity.ERROR]
            if missing:
                what = ", ".join(missing)
                print(f"sandboxctl: {daemon.type.value} is left out, see `doctor`: {what}", file=sys.stderr)
            else:
                runnable.append(daemon)
    return runnable


def _install(daemons: list[Daemon], arguments: argparse.Namespace) -> None:
    results = {}
    os.makedirs(arguments.directory, 0o755, exist_ok=True)
    for daemon in daemons:
        path = f"{arguments.directory}/sandboxd-{daemon.type.value}.toml"
        results[path] = _write(path, drop_in(daemon.type, daemon.config.socket), force=arguments.force)
    if arguments.as_json:
        print_json([{"file": path, "result": result} for path, result in results.items()])
        return
    for path, result in results.items():
        print(f"{path}: {result}")
    if "written" in results.values():
        print("next: systemctl restart containerd; then `sandboxctl containerd check`")


def _write(path: str, text: str, *, force: bool) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return "as it should be"
    except FileNotFoundError:
        pass
    else:
        if not force:
            raise AlreadyExists(f"{path} is there and differs: look at it, then use --force")
    temporary = f"{path}.new"  # containerd reads *.toml alone
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.rename(temporary, path)
    return "written"
