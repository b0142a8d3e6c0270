"""The packages that lie on the node, and what installs and removes them."""

from __future__ import annotations

import subprocess

from tests.node.package import PACKAGES, package_of

# Everything of a package is compiled to bytecode, by an emulated processor.
COMMAND_LIMIT_S = 600


def install(version: str) -> None:
    """Install one version, OLDER or NEWER."""
    dpkg("--install", str(package_of(PACKAGES / version)))


def installed_version() -> str:
    """The version that is installed, which ends in `+newer` for NEWER."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", "sandboxd"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def dpkg(*arguments: str) -> str:
    """Run dpkg to its end and return what it and the packages' scripts have said; RuntimeError if it fails."""
    done = subprocess.run(
        ["dpkg", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"dpkg {' '.join(arguments)} failed:\n{done.stdout}")
    return done.stdout
