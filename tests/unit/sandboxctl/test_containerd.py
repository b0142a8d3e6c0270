"""What is wrong with a containerd's configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound
from sandboxctl.containerd import Installation, examine_config, examine_containerd
from sandboxctl.daemons import Daemon
from sandboxctl.drop_ins import drop_in
from sandboxers.doctor import Severity
from sandboxers.isolation import IsolationType
from sandboxers.runc.config import RuncConfig

SOCKET = "/run/sandboxd/runc.sock"
DAEMON = Daemon(IsolationType.RUNC, "runc.yaml", RuncConfig())
RUNTIMES = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
PLUGIN = f"""
[proxy_plugins.ours]
  type = "sandbox"
  address = "{SOCKET}"
"""
RUNTIME = f"""
[{RUNTIMES}.sandboxd]
  runtime_type = "/bin/true"
  sandboxer = "ours"
"""


def errors(text: str) -> list[str]:
    findings = examine_config(tomllib.loads(text), [DAEMON])
    return [
        f"{finding.subject}: {finding.found}" for finding in findings if finding.severity is Severity.ERROR
    ]


def test_a_plugin_and_a_runtime_are_all_it_takes() -> None:
    assert errors(PLUGIN + RUNTIME) == []


def test_our_own_drop_in_is_understood() -> None:
    # What its runtime names need not be on the machine that runs this.
    assert not [error for error in errors(drop_in(IsolationType.RUNC, SOCKET)) if "PATH" not in error]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", f"no proxy plugin has the address {SOCKET}"),
        (PLUGIN.replace('"sandbox"', '"snapshot"') + RUNTIME, "no proxy plugin has the address"),
        (PLUGIN, "no runtime has it as its sandboxer"),
        (PLUGIN.replace("ours", "shim") + RUNTIME.replace("ours", "shim"), "as one of containerd's own is"),
        (PLUGIN.replace('"/run/', '"unix:///run/') + RUNTIME, "has a scheme"),
        (PLUGIN + RUNTIME.replace("/bin/true", ""), "has no runtime_type"),
        (PLUGIN + RUNTIME + '  io_type = "streaming"\n', "streaming"),
        (PLUGIN + RUNTIME + f'[{RUNTIMES}.sandboxd.options]\n  BinaryName = "x"\n', "cannot read"),
        (
            PLUGIN + RUNTIME.replace("/bin/true", "io.containerd.nosuch.v7"),
            "containerd-shim-nosuch-v7 is not on PATH",
        ),
        (
            PLUGIN + RUNTIME + f'[{RUNTIMES}.x]\n  runtime_type = "y"\n  sandboxer = "z"\n',
            "'z', which no proxy",
        ),
        ('disabled_plugins = ["cri"]\n' + PLUGIN + RUNTIME, "disabled_plugins"),
    ],
)
def test_each_mistake_is_told(text: str, wrong: str) -> None:
    found = errors(text)
    assert [error for error in found if wrong in error], found


async def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="none"):
        await examine_containerd([DAEMON], str(tmp_path / "none"))
    (tmp_path / "bad").write_text("= 3")
    with pytest.raises(InvalidArgument, match="not TOML"):
        await examine_containerd([DAEMON], str(tmp_path / "bad"))


@pytest.mark.parametrize("words", [("--config", "/c.toml"), ("--config=/c.toml",), ()])
def test_a_running_containerd_is_asked_as_it_was_started(tmp_path: Path, words: tuple[str, ...]) -> None:
    process = tmp_path / "77"
    process.mkdir()
    (process / "comm").write_text("containerd\n")
    (process / "cmdline").write_text("\0".join(["containerd", *words, "--log-level", "debug", ""]))
    (process / "environ").write_text("A=b\0PATH=/own/bin\0")
    (process / "exe").symlink_to("/opt/containerd/bin/containerd (deleted)")
    (tmp_path / "78").mkdir()
    (tmp_path / "self").mkdir()
    found = Installation.find(str(tmp_path))
    assert found == Installation(("/opt/containerd/bin/containerd", *words), "/own/bin:/opt/containerd/bin")
