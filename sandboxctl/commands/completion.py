"""Print a script that teaches a shell to complete verbs, options, and the ids of pods and containers.

    bash    source <(sandboxctl completion bash)          in ~/.bashrc
    zsh     sandboxctl completion zsh >DIR/_sandboxctl    DIR being on the fpath
    fish    sandboxctl completion fish | source           in config.fish

The script is made for this version: let the shell ask for it anew, or write it again after an upgrade.
"""

from __future__ import annotations

import argparse

from common.errors import InvalidArgument
from sandboxctl import completion
from sandboxctl.commands import SUMMARIES

_SHELLS = {"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=list(_SHELLS))


def run(arguments: argparse.Namespace) -> int:
    from sandboxctl.main import make_parser  # which loads this module by its name

    if arguments.as_json:
        raise InvalidArgument("a script for a shell is not JSON")
    parser, parsers = make_parser()
    verbs = [
        completion.Verb(verb, SUMMARIES[verb], *completion.words_of(of_verb.complete()))
        for verb, of_verb in parsers.items()
    ]
    print(_SHELLS[arguments.shell](completion.words_of(parser)[0], verbs), end="")
    return 0
