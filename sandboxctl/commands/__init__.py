"""The verbs of sandboxctl: a line here, and a module of the same name that has what `Command` says."""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

SUMMARIES = {
    "run": "run a pod without an engine, from an image on this machine",
    "ps": "list the pods",
    "inspect": "show all that is known of a pod",
    "logs": "show what a container has written",
    "exec": "run a command in a container",
    "stats": "show what running containers use",
    "events": "tell what happens to pods and containers",
    "wait": "wait for the end of pods or containers",
    "stop": "stop pods or containers",
    "rm": "remove pods or containers",
    "explain": "show how a pod was started, and tell what it waits for",
    "console": "show what the guest of a VM pod has written to its console",
    "gc": "remove what belongs to nobody any more",
    "containerd": "print, install or check what containerd must know",
    "completion": "teach a shell to complete command lines",
    "config": "check configuration files, show values, list keys",
    "doctor": "tell what this node has and lacks",
}
"""Every verb with its line in the list of all, in the order of that list."""


class Command(Protocol):
    """What the module of a verb has. The module's docstring is the verb's help.

    A verb whose exit code is somebody else's may have `FAILURE_STATUS`, with which it ends when itself has failed.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what the verb takes beside the options that all take: `--config` and `--json`."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit code.

        :raise SandboxdError, OSError: it failed; the caller says so in one line and exits with 1, or `FAILURE_STATUS`.
        """
        ...


def load_command(verb: str) -> Command:
    """Return the module of a verb."""
    return cast(Command, importlib.import_module(f"sandboxctl.commands.{verb}"))
