"""The Debian packages as files; what they do to a node and its pods is in test_services.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sandboxers.isolation import IsolationType
from tests.node.package import OLDER


def contents(package: Path) -> dict[str, str]:
    """The paths in a package, with their permissions."""
    listing = subprocess.run(
        ["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True
    )
    columns = [line.split(maxsplit=5) for line in listing.stdout.splitlines()]
    return {path.removeprefix(".").partition(" -> ")[0]: mode for mode, *_, path in columns}


@pytest.mark.timeout(300)
def test_lintian_finds_nothing_that_is_not_explained(packages: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("no lintian: run scripts/install-packages test")
    command = ["lintian", "--fail-on", "error,warning", *map(str, (packages / OLDER).glob("*.deb"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", list(IsolationType))
def test_each_type_has_its_configuration_its_drop_in_and_its_runtime_class(
    packages: Path, kind: IsolationType
) -> None:
    name, suffix = (
        ("sandboxd", "") if kind is IsolationType.RUNC else (f"sandboxd-{kind.value}", f"-{kind.value}")
    )
    (package,) = (packages / OLDER).glob(f"{name}_*.deb")
    paths = contents(package)
    assert f"/etc/sandboxd/{kind.value}.yaml" in paths
    assert f"/usr/share/sandboxd/containerd/sandboxd-{kind.value}.toml" in paths
    assert f"/usr/share/sandboxd/kubernetes/runtimeclass-sandboxd{suffix}.yaml" in paths
    assert f"/usr/share/man/man5/sandboxd-{kind.value}.yaml.5.gz" in paths
    # A containerd before version 2 would not start with what is for newer ones.
    assert not [path for path in paths if path.startswith("/etc/containerd")]
