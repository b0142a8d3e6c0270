"""Whether containerd is configured so that pods reach the daemons of this node, and what is wrong if not.

What must be so: engine contract, sections 1.1 to 1.5 (plugin and runtime tables, names, I/O, the program that must be
found). Looked at is what containerd would read if it were started now.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from common.errors import InvalidArgument, NotFound
from common.process.spawn import CAPTURE, CLEAN_ENVIRONMENT, run
from sandboxctl.daemons import Daemon
from sandboxers.doctor import Examination, Finding, Severity

_OLDEST = (2, 0, 6)
_CRI = "io.containerd.cri.v1.runtime"
_PLUGIN_TYPES = ("sandbox", "io.containerd.sandbox.controller.v1")
_RESERVED = ("shim", "podsandbox")
_WITH_OPTIONS = "io.containerd.runc.v2"
_TIMEOUT_S = 10.0
_PATH = f"/usr/local/sbin:/usr/local/bin:{CLEAN_ENVIRONMENT['PATH']}"
_INSTALL = "sandboxctl containerd install --type {}, then systemctl restart containerd"
_IMPORTS = 'see that /etc/containerd/config.toml has imports = ["/etc/containerd/conf.d/*.toml"]'


class Installation(NamedTuple):
    """A containerd: its program and options, and where it looks for shims (`os.pathsep` between the directories)."""

    command: tuple[str, ...]
    path: str

    @classmethod
    def find(cls, proc: str = "/proc") -> Installation | None:
        """Return the containerd that runs, else the one that is installed, else None."""
        for pid in filter(str.isdigit, os.listdir(proc)):
            # It may end while it is looked at, and others' processes are not ours to read.
            with contextlib.suppress(OSError):
                if _read(f"{proc}/{pid}/comm").strip() == "containerd":
                    return cls._running(f"{proc}/{pid}")
        program = shutil.which("containerd", path=_PATH)
        return cls((program,), _PATH) if program else None

    @classmethod
    def _running(cls, process: str) -> Installation:
        program = os.readlink(f"{process}/exe").removesuffix(" (deleted)")
        words = _read(f"{process}/cmdline").split("\0")
        option = [word for pair in pairwise(words) if pair[0] in ("--config", "-c") for word in pair]
        joined = [word for word in words if word.startswith("--config=")]
        environment = dict(entry.partition("=")[::2] for entry in _read(f"{process}/environ").split("\0"))
        path = f"{environment.get('PATH', _PATH)}:{os.path.dirname(program)}"
        return cls((program, *option[:2], *joined[:1]), path)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


async def examine_containerd(daemons: Sequence[Daemon], dump_file: str | None) -> list[Finding]:
    """Compare containerd's configuration with the daemons'.

    :param dump_file: what `containerd config dump` has written; None: it is run, as the running containerd was.
    :raise NotFound: there is no containerd, or no such file.
    :raise InvalidArgument: the configuration cannot be read.
    """
    installation = Installation.find()
    findings = []
    if dump_file is None:
        if installation is None:
            raise NotFound("there is no containerd on this node; give its configuration with --dump FILE")
        async with Examination() as examination:
            findings.append(_version(await examination.version(installation.command[0])))
            text = await _dump(installation, examination)
    else:
        try:
            text = _read(dump_file)
        except FileNotFoundError:
            raise NotFound(f"{dump_file}: no such file") from None
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"containerd's configuration is not TOML: {error}") from None
    return [*findings, *examine_config(config, daemons, installation.path if installation else _PATH)]


async def _dump(installation: Installation, examination: Examination) -> str:
    command = [*installation.command, "config", "dump"]
    done = await run(command, watcher=examination.exits, timeout_s=_TIMEOUT_S, stdout=CAPTURE, stderr=CAPTURE)
    if done.status.code:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InvalidArgument(f"containerd cannot read its configuration: {''.join(reason)}")
    return done.stdout.decode(errors="replace")


def _version(line: str | None) -> Finding:
    found = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", line or "")
    if line is None or found is None:
        return Finding(Severity.WARNING, "containerd", "does not tell its version")
    if tuple(map(int, found.groups())) < _OLDEST:
        return Finding(Severity.ERROR, "containerd", f"{found[0]} is too old", "install 2.0.6 or newer")
    return Finding(Severity.OK, "containerd", found[0])


def examine_config(
    config: Mapping[str, Any], daemons: Sequence[Daemon], path: str = _PATH
) -> Iterator[Finding]:
    """Yield what is found in a configuration, imports included; `path` is where containerd looks for shims."""
    if any(plugin in config.get("disabled_plugins", ()) for plugin in ("cri", _CRI)):
        yield Finding(
            Severity.ERROR, "CRI", "is among disabled_plugins", "take it out, and restart containerd"
        )
    proxies = {
        name: plugin
        for name, plugin in config.get("proxy_plugins", {}).items()
        if plugin.get("type") in _PLUGIN_TYPES
    }
    runtimes = config.get("plugins", {}).get(_CRI, {}).get("containerd", {}).get("runtimes", {})
    for daemon in daemons:
        yield from _examine_daemon(daemon, proxies, runtimes, path)
    for name, runtime in runtimes.items():
        sandboxer = runtime.get("sandboxer") or "podsandbox"
        if sandboxer not in (*_RESERVED, *proxies):
            yield Finding(
                Severity.ERROR,
                f"runtime {name}",
                f"has the sandboxer {sandboxer!r}, which no proxy plugin of the type 'sandbox' is called",
                f"add [proxy_plugins.{sandboxer}], or correct the name",
            )


def _examine_daemon(
    daemon: Daemon,
    proxies: Mapping[str, Mapping[str, Any]],
    runtimes: Mapping[str, Mapping[str, Any]],
    path: str,
) -> Iterator[Finding]:
    subject, socket = daemon.type.value, daemon.config.socket
    names = [name for name, plugin in proxies.items() if _path(plugin) == os.path.normpath(socket)]
    if not names:
        advice = f"{_INSTALL.format(subject)}; {_IMPORTS}"
        yield Finding(Severity.ERROR, subject, f"no proxy plugin has the address {socket}", advice)
        return
    for name in names:
        if name in _RESERVED:
            yield Finding(
                Severity.ERROR, subject, f"its plugin is called {name!r}, as one of containerd's own is", ""
            )
        if "://" in str(proxies[name].get("address")):
            yield Finding(
                Severity.ERROR,
                subject,
                f"the address of proxy plugin {name} has a scheme",
                f'address = "{socket}"',
            )
    users = {name: runtime for name, runtime in runtimes.items() if runtime.get("sandboxer") in names}
    if not users:
        yield Finding(Severity.ERROR, subject, "no runtime has it as its sandboxer", _INSTALL.format(subject))
    for name, runtime in users.items():
        problems = list(_examine_runtime(name, runtime, path))
        yield from problems
        if not problems:
            yield Finding(Severity.OK, subject, f"pods of the handler {name} reach {socket}")


def _examine_runtime(name: str, runtime: Mapping[str, Any], path: str) -> Iterator[Finding]:
    subject = f"runtime {name}"
    kind = str(runtime.get("runtime_type", ""))
    options = runtime.get("options") or {}
    if not kind:
        yield Finding(Severity.ERROR, subject, "has no runtime_type", f'runtime_type = "{_WITH_OPTIONS}"')
    elif kind != _WITH_OPTIONS and options:
        yield Finding(
            Severity.ERROR, subject, f"has options, which containerd cannot read for {kind}", "remove them"
        )
    if runtime.get("io_type") == "streaming":
        yield Finding(Severity.ERROR, subject, "has the io_type 'streaming'", 'io_type = "": FIFOs')
    program = _shim(kind)
    if program and not shutil.which(program, path=path):
        link = f"ln -s {os.path.dirname(sys.executable)}/{program} /usr/local/bin/"
        advice = link if "sandboxd" in program else "install containerd's own shims"
        yield Finding(
            Severity.ERROR, subject, f"{program} is not on PATH, where containerd looks for it", advice
        )
    binary = options.get("BinaryName")
    if binary and not shutil.which(binary):
        yield Finding(
            Severity.WARNING,
            subject,
            f"its options name {binary}, which is not there: no features are offered",
            "",
        )


def _path(plugin: Mapping[str, Any]) -> str:
    return os.path.normpath(
        str(plugin.get("address", "")).partition("://")[2] or str(plugin.get("address", ""))
    )


def _shim(runtime_type: str) -> str:
    """Return the program that containerd derives from a runtime's type, which is io.containerd.NAME.VERSION."""
    if runtime_type.startswith("/"):
        return runtime_type
    parts = runtime_type.split(".")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}" if len(parts) > 1 else ""
