"""The systemd unit says what keeps pods alive, and nothing that hides the daemon's mounts from them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "configs/systemd/sandboxd@.service"

# systemd.exec(5): each of these gives the service a mount namespace of its own.
HIDES_MOUNTS = {
    "bindpaths", "bindreadonlypaths", "dynamicuser", "execpaths", "extensiondirectories", "extensionimages",
    "inaccessiblepaths", "loadcredential", "mountapivfs", "mountflags", "mountimages", "noexecpaths",
    "privatedevices", "privateipc", "privatemounts", "privatenetwork", "privatetmp", "privateusers",
    "procsubset", "protectclock", "protectcontrolgroups", "protecthome", "protecthostname",
    "protectkernellogs", "protectkernelmodules", "protectkerneltunables", "protectproc", "protectsystem",
    "readonlypaths", "readwritepaths", "rootdirectory", "rootimage", "temporaryfilesystem",
}  # fmt: skip


def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(UNIT, encoding="utf-8")
    return dict(parser["Service"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "notify"),
        ("killmode", "process"),
        ("delegate", "yes"),
        ("restart", "always"),
        ("oomscoreadjust", "-999"),
        ("limitnofile", "1048576"),
        ("tasksmax", "infinity"),
        ("runtimedirectorypreserve", "yes"),
        ("umask", "0077"),
    ],
)
def test_pods_survive_what_happens_to_the_daemon(key: str, value: str) -> None:
    assert service()[key] == value


def test_no_setting_gives_the_daemon_a_mount_namespace_of_its_own() -> None:
    assert not HIDES_MOUNTS & service().keys()


def test_it_starts_before_the_engine_and_is_never_given_up() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(UNIT, encoding="utf-8")
    assert parser["Unit"]["Before"] == "containerd.service"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.may_skip("a machine without systemd cannot check its units")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "sandboxd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "sandboxd@runc.service"
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/sandboxd/bin/sandboxd", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "sandboxd" in line]
    assert (done.returncode, complaints) == (0, [])
