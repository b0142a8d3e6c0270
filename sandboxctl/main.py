"""The command line of sandboxctl, of which only the part that is asked for is loaded.

Exit codes: 0; 1 with one line on standard error when it failed; 2 for a wrong command line; 130 when interrupted.
What else a verb's exit code may mean stands in its help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from common.errors import SandboxdError
from sandboxctl.commands import SUMMARIES, load_command
from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE, DEFAULT_CONFIG_DIRECTORY

_EPILOG = f"""\
A pod or container may be named by the beginning of its id, or by its name. The daemons are those whose configuration
files are in {DEFAULT_CONFIG_DIRECTORY}, in ${CONFIG_DIRECTORY_VARIABLE}, or given with --config.

Exit codes: 0; 1: it failed, and why is on standard error; 2: wrong command line. What else a verb's exit code
means is in its help.
"""
_INTERRUPTED = 130  # as a shell says it of a program that SIGINT has ended
_BROKEN_PIPE = 141  # the same of SIGPIPE


class ParagraphFormatter(argparse.HelpFormatter):
    """Fits each paragraph of a description to the terminal, where its parent makes one of all; lists are left alone."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            part if part.startswith(" ") else super(ParagraphFormatter, self)._fill_text(part, width, indent)
            for part in text.strip().split("\n\n")
        )
        return "\n\n".join(paragraphs)


class VerbParser(argparse.ArgumentParser):
    """The parser of one verb. Its arguments are added when they are needed, since that takes the verb's module."""

    def __init__(self, verb: str = "", **options: Any) -> None:
        super().__init__(formatter_class=ParagraphFormatter, **options)
        self._verb = verb

    def complete(self) -> VerbParser:
        """Add the verb's arguments, if that has not been done, and return the parser."""
        if self._verb:
            command = load_command(self._verb)
            self._verb = ""
            self.description = command.__doc__
            _add_common_options(self, default=argparse.SUPPRESS)
            command.add_arguments(self)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What the parser of all verbs calls for the one that it has found."""
        return super(VerbParser, self.complete()).parse_known_args(args, namespace)


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, VerbParser]]:
    """Return the parser of the whole command line, and those of the verbs by name."""
    parser = argparse.ArgumentParser(
        prog="sandboxctl",
        formatter_class=ParagraphFormatter,
        description="See and steer the pods of the sandboxd daemons on this node.",
        epilog=_EPILOG,
    )
    _add_common_options(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=VerbParser)
    return parser, {verb: verbs.add_parser(verb, verb=verb, help=text) for verb, text in SUMMARIES.items()}


def _add_common_options(parser: argparse.ArgumentParser, default: Any = None) -> None:
    # With a verb's parser they are optional in the stronger sense: its defaults would undo what came before the verb.
    parser.add_argument(
        "--config",
        action="append",
        default=default,
        metavar="FILE",
        dest="config_files",
        help="a daemon's configuration, instead of all in the directory; may be repeated",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=default or False,
        dest="as_json",
        help="print JSON, for programs",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, and return the exit code."""
    # asyncio loads it, which takes longer than many a verb, for what is not done here: all sockets are the node's own.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    # What others have written may be no text.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser, _ = make_parser()
    parsed = parser.parse_args(arguments)
    command = load_command(parsed.verb)
    try:
        status = command.run(parsed)
        sys.stdout.flush()
        return status
    except (SandboxdError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever reads has seen enough. What is still buffered must not fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BROKEN_PIPE
        hint = "" if os.geteuid() == 0 else " (sandboxctl is for root: nobody else may look at pods)"
        print(f"sandboxctl: {error}{hint}", file=sys.stderr)
        return getattr(command, "FAILURE_STATUS", 1)
    except KeyboardInterrupt:
        return _INTERRUPTED
