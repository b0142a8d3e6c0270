"""The systemd unit says what keeps pods alive, and nothing that hides the daemon's mounts from them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "configs/systemd/sandboxd@.service"
SUPERVISED = UNIT.with_name(f"{UNIT.name}.d") / "supervise.conf"

# systemd.exec(5): each of these gives the service a mount namespace of its own.
HIDES_MOUNTS = {
    "bindpaths", "bindreadonlypaths", "dynamicuser", "execpaths", "extensiondirectories", "extensionimages",
    "inaccessiblepaths", "loadcredential", "mountapivfs", "mountflags", "mountimages", "noexecpaths",
    "privatedevices", "privateipc", "privatemounts", "privatenetwork", "privatetmp", "privateusers",
    "procsubset", "protectclock", "protectcontrolgroups", "protecthome", "protecthostname",
    "protectkernellogs", "protectkernelmodules", "protectkerneltunables", "protectproc", "protectsystem",
    "readonlypaths", "readwritepaths", "rootdirectory", "rootimage", "temporaryfilesystem",
}  # fmt: skip


def service(*drop_ins: Path) -> dict[str, str]:
    # A key that stands twice, as an emptied ExecStart does, has its last value here too.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read([UNIT, *drop_ins], encoding="utf-8")
    return dict(parser["Service"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "notify"),
        ("killmode", "process"),
        ("delegate", "yes"),
        ("restart", "always"),
        ("restartsec", "100ms"),
        ("notifyaccess", "main"),
        ("filedescriptorstorepreserve", "yes"),
        ("oomscoreadjust", "-999"),
        ("limitnofile", "1048576"),
        ("tasksmax", "infinity"),
        ("runtimedirectorypreserve", "yes"),
        ("umask", "0077"),
    ],
)
def test_pods_survive_what_happens_to_the_daemon(key: str, value: str) -> None:
    assert service()[key] == value


def test_the_names_of_all_kept_descriptors_fit_into_an_environment_string() -> None:
    # execve(2): 32 pages. A longer one would keep the daemon from ever starting again.
    assert int(service()["filedescriptorstoremax"]) * len("c1234567:") < 32 * 4096


def test_for_older_kernels_only_the_command_changes_and_a_reload_upgrades() -> None:
    plain, supervised = service(), service(SUPERVISED)
    program, _, arguments = plain["execstart"].partition(" ")
    assert supervised["execstart"] == f"{program} --supervise {arguments}"
    assert supervised["execreload"] == "/bin/kill -HUP $MAINPID"
    changed = {key for key in supervised if supervised[key] != plain.get(key)}
    assert changed == {"execstart", "execreload", "timeoutstopsec"}
    assert "\nExecStart=\nExecStart=" in SUPERVISED.read_text(encoding="utf-8")


@pytest.mark.parametrize("drop_ins", [(), (SUPERVISED,)], ids=["plain", "supervised"])
def test_no_setting_gives_the_daemon_a_mount_namespace_of_its_own(drop_ins: tuple[Path, ...]) -> None:
    assert not HIDES_MOUNTS & service(*drop_ins).keys()


def test_it_starts_before_the_engine_and_is_never_given_up() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(UNIT, encoding="utf-8")
    assert parser["Unit"]["Before"] == "containerd.service"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.may_skip("a machine without systemd cannot check its units")
@pytest.mark.parametrize("drop_in", [None, SUPERVISED], ids=["plain", "supervised"])
def test_systemd_accepts_the_unit(tmp_path: Path, drop_in: Path | None) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "sandboxd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "sandboxd@runc.service"
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("ExecStart=sandboxd", f"ExecStart={program}"))
    if drop_in is not None:
        directory = tmp_path / "sandboxd@runc.service.d"
        directory.mkdir()
        text = drop_in.read_text(encoding="utf-8").replace("ExecStart=sandboxd", f"ExecStart={program}")
        (directory / drop_in.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "sandboxd" in line]
    # systemd before 254 says that it ignores it, which is what the unit counts on.
    complaints = [line for line in complaints if "FileDescriptorStorePreserve" not in line]
    assert (done.returncode, complaints) == (0, [])
