"""What this node has and lacks for pods of plain containers."""

from __future__ import annotations

from sandboxers.doctor import Examination, Finding, program_finding
from sandboxers.runc.config import RuncConfig


async def examine(config: RuncConfig, examination: Examination) -> list[Finding]:
    """Look for the program that makes the containers, and what it is known to suffer from."""
    binary = config.runtime.binary
    version = await examination.version(binary)
    advice = "apt-get install crun, or name another one in runtime.binary"
    finding = program_finding("OCI runtime", binary, version, advice)
    if version is None:
        return [finding]
    # "crun version 1.8.1"; it may be installed under another name.
    return [finding, *await examination.vulnerabilities(version.split(" ")[0], binary, version)]
