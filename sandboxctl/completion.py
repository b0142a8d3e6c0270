"""Completion for shells, made from the parser, so that there is one place where options are declared.

What a word may be follows from how an argument is declared: its choices; ids of pods or containers, files, or nothing
known by the `metavar`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NamedTuple

_PODS = "sandboxctl ps -q 2>/dev/null"
_CONTAINERS = "sandboxctl ps -c -q 2>/dev/null"
_COMMANDS = {
    "POD": [_PODS],
    "CONTAINER": [_CONTAINERS],
    "POD|CONTAINER": [_PODS, _CONTAINERS],
}
"""Which commands print what may stand for a metavar."""
_FILES = ("FILE", "DIR")


class Word(NamedTuple):
    """What may stand in one place: an option with its spellings, of which a positional argument has none.

    `repeats` tells that it may fill all places that follow.
    """

    spellings: tuple[str, ...]
    takes_value: bool
    choices: tuple[str, ...]
    metavar: str
    help: str
    repeats: bool = False

    @property
    def commands(self) -> list[str]:
        """What prints further words for this place."""
        return _COMMANDS.get(self.metavar, [])

    @property
    def is_file(self) -> bool:
        return self.metavar in _FILES


class Verb(NamedTuple):
    """A verb with its summary and all that may follow it."""

    name: str
    summary: str
    options: list[Word]
    arguments: list[Word]


def words_of(parser: argparse.ArgumentParser) -> tuple[list[Word], list[Word]]:
    """Return the options and the positional arguments of a parser."""
    words = [
        _word(action) for action in parser._actions if not isinstance(action, argparse._SubParsersAction)
    ]
    return [word for word in words if word.spellings], [word for word in words if not word.spellings]


def _word(action: argparse.Action) -> Word:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    choices = tuple(map(str, action.choices or ()))
    help_text = (action.help or "") % {"default": action.default, "prog": "sandboxctl"}
    repeats = action.nargs in ("*", "+", argparse.REMAINDER)
    return Word(tuple(action.option_strings), action.nargs != 0, choices, metavar, help_text, repeats)


def bash(global_options: list[Word], verbs: list[Verb]) -> str:
    """Return a completion script for bash."""
    lines = [
        "_sandboxctl() {",
        '    local word verb="" words="" current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        case $word in {'|'.join(verb.name for verb in verbs)}) verb=$word; break ;; esac",
        "    done",
        "    case $verb:$previous in",
    ]
    for verb in [Verb("*", "", global_options, []), *verbs]:
        # Of values that nobody knows files may be some: complete -o default.
        values: dict[str, list[str]] = {}
        for option in verb.options:
            if option.takes_value:
                values.setdefault(_bash_values(option), []).extend(option.spellings)
        for reply, spellings in values.items():
            pattern = "|".join(f"{verb.name}:{spelling}" for spelling in spellings)
            lines.append(f"        {pattern}) {reply}; return ;;")
    lines += ["    esac", "    case $verb in"]
    for verb in [Verb('""', "", global_options, [_verb_names(verbs)]), *verbs]:
        lines.append(f"        {verb.name}) words={_bash_words(verb)} ;;")
    lines += [
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
        "}",
        "complete -o default -F _sandboxctl sandboxctl",
    ]
    return "\n".join(lines) + "\n"


def _verb_names(verbs: list[Verb]) -> Word:
    return Word((), True, tuple(verb.name for verb in verbs), "", "")


def _bash_values(option: Word) -> str:
    words = [*option.choices, *(f"$({command})" for command in option.commands)]
    return (
        f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(words)}" -- "$current")' if words else "COMPREPLY=()"
    )


def _bash_words(verb: Verb) -> str:
    words = [spelling for option in verb.options for spelling in option.spellings]
    for argument in verb.arguments:
        words += [*argument.choices, *(f"$({command})" for command in argument.commands)]
    return f'"{" ".join(words)}"'


def zsh(global_options: list[Word], verbs: list[Verb]) -> str:
    """Return a completion function for zsh, for a file called _sandboxctl on its fpath."""
    lines = [
        "#compdef sandboxctl",
        "_sandboxctl() {",
        "    local context state state_descr line",
        "    typeset -A opt_args",
        f"    _arguments -C {' '.join(_zsh_words(global_options))} '1: :->verb' '*:: :->rest'",
        "    case $state in",
        "        verb) local -a verbs=(",
        *(f"            {_quoted(f'{verb.name}:{verb.summary}')}" for verb in verbs),
        "        ); _describe verb verbs ;;",
        "        rest) case $words[1] in",
    ]
    for verb in verbs:
        words = [*_zsh_words(verb.options), *_zsh_arguments(verb.arguments)]
        lines.append(f"            {verb.name}) _arguments {' '.join(words)} ;;")
    lines += ["        esac ;;", "    esac", "}", '_sandboxctl "$@"']
    return "\n".join(lines) + "\n"


def _zsh_words(options: list[Word]) -> Iterator[str]:
    for option in options:
        text = re.sub(r"[][:]", " ", option.help)
        value = f":{option.metavar or 'value'}:{_zsh_values(option)}" if option.takes_value else ""
        for spelling in option.spellings:
            yield _quoted(f"*{spelling}[{text}]{value}")


def _zsh_arguments(arguments: list[Word]) -> Iterator[str]:
    for number, argument in enumerate(arguments, 1):
        place = "*" if argument.repeats else number
        yield _quoted(f"{place}:{argument.metavar.replace('|', ' or ') or 'word'}:{_zsh_values(argument)}")


def _zsh_values(word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    return f'{{compadd -- ${{(f)"$({"; ".join(word.commands)})"}}}}' if word.commands else "_files"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def fish(global_options: list[Word], verbs: list[Verb]) -> str:
    """Return a completion script for fish."""
    lines = [f"complete -c sandboxctl {_fish_option(option)}" for option in global_options]
    for verb in verbs:
        lines.append(
            f"complete -c sandboxctl -f -n __fish_use_subcommand -a {verb.name} -d {_fish_quoted(verb.summary)}"
        )
        here = f"complete -c sandboxctl -n '__fish_seen_subcommand_from {verb.name}'"
        lines += [f"{here} {_fish_option(option)}" for option in verb.options]
        for argument in verb.arguments:
            values = [*argument.choices, *(f"({command})" for command in argument.commands)]
            if values:
                lines.append(f'{here} -f -a "{" ".join(values)}"')
    return "\n".join(lines) + "\n"


def _fish_option(option: Word) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.spellings]
    if option.takes_value:
        parts.append("-r" if option.is_file or not option.choices else "-x")
        if option.choices:
            parts.append(f'-a "{" ".join(option.choices)}"')
    return " ".join([*parts, "-d", _fish_quoted(option.help)])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
