"""The saved state of a booted node, made once per content of what it is made of, and clones of it.

A template knows nothing of this checkout's code: a clone brings it along (`Node.upload`).
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.node.channel import Ended
from tests.node.machine import DEVICES, Machine
from tests.node.package import (
    CHECKOUT,
    OLDER,
    PACKAGES,
    checkout_archive,
    directory_archive,
    engine_archive,
    package_of,
)
from vmm.image.manifest import GuestImage

CACHE = CHECKOUT / ".cache/node"
BUILD_TIMEOUT_S = 900
BOOT_TIMEOUT_S = 180
INSTALL_TIMEOUT_S = 300

# The files that a node's disk is made of; others are the pins in pyproject.toml, and what is done after the boot.
INPUTS = (
    "scripts/build-node",
    "tests/node/root",
    ".cache/engine/.versions",
    ".cache/images/demo/index.json",
)
# What a clone gets of the checkout, for the tests.
PARTS = (
    *("common", "configs", "packaging", "proto", "sandboxctl", "sandboxers", "tests", "vmm"),
    *("pyproject.toml", "README.md"),
)
COPY = "/opt/node/checkout"
PYTHON = "/opt/node/python/bin/python"
# In the root cgroup, which alone may have processes and hand controllers to children.
IN_ROOT_CGROUP = 'echo $$ >/sys/fs/cgroup/cgroup.procs; exec "$@"'

# Where a node has the programs that tests with an engine look for in a checkout.
PROGRAMS: Mapping[str, str] = {
    ".venv": "/opt/node/python",
    ".cache/engine/usr/bin": "/usr/bin",
    ".cache/runtimes": "/usr/bin",
    ".cache/vm": "/usr/libexec",
}
LINK = 'mkdir -p "$(dirname "$1")" && ln -sfn "$0" "$1"'

# With what it has read in its page cache, a clone starts its first programs in half the time.
PREPARE = """\
set -eu
until systemctl is-system-running >/dev/null; do
    [ "$(systemctl is-system-running)" != degraded ] || { systemctl --failed; exit 1; }
    sleep 0.2
done
systemctl start containerd
tar -C /opt/node/images -cf - . | ctr --namespace k8s.io images import -
systemctl stop containerd
rm -rf /opt/node/images
/opt/node/python/bin/python -c 'import asyncio, ctypes, grpc.aio, hypothesis, psutil, pytest, structlog, yaml'
crun --version && runc --version && find /usr/lib/cni -type f -exec cat {} + >/dev/null
sync
"""


def key() -> str:
    """Return what names the template of this checkout on this machine; FileNotFoundError if a part is missing."""
    with (CHECKOUT / "pyproject.toml").open("rb") as project:
        pins = tomllib.load(project)["project"]["optional-dependencies"]["dev"]
    digest = hashlib.sha256("\0".join((*DEVICES, *pins, PREPARE)).encode())
    for name in INPUTS:
        path = CHECKOUT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"\0{file.relative_to(CHECKOUT)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def ready() -> Path:
    """Return the directory of the template, which is built first if it is not there (about two minutes).

    Raises RuntimeError with the words of what failed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    directory = CACHE / key()
    with (CACHE / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            new = CACHE / "new"
            _build(new)
            new.rename(directory)
    return directory


def _build(directory: Path) -> None:
    done = subprocess.run(
        [str(CHECKOUT / "scripts/build-node"), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"scripts/build-node failed:\n{done.stdout}")
    with Machine(directory, keep=True) as machine:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while True:
            try:
                ended = machine.channel.run(["sh", "-c", PREPARE], timeout_s=BOOT_TIMEOUT_S)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not boot\n{machine.evidence()}") from None
                time.sleep(0.2)
        if ended.status != 0:
            raise RuntimeError(f"the node could not be prepared:\n{ended.output}\n{machine.evidence()}")
        machine.save(directory / "state")
        machine.quit()


class Node:
    """A clone of the template with this checkout in it."""

    def __init__(self, template: Path) -> None:
        self.machine = Machine(template, state=template / "state")
        self.channel = self.machine.channel
        try:
            self.run("date", "-s", f"@{time.time():.3f}")
            self.upload(checkout_archive(PARTS), COPY)
        except BaseException:
            self.close()
            raise

    def install_package(self, packages: Path) -> None:
        """Install the older version of what `build_packages` has built there, and bring the newer one along."""
        self.upload(directory_archive(packages), str(PACKAGES))
        package = PACKAGES / OLDER / package_of(packages / OLDER).name
        self.run("dpkg", "--install", str(package), timeout_s=INSTALL_TIMEOUT_S)

    def bring_engine(self, images: Sequence[GuestImage]) -> None:
        """Make the copy of the checkout one in which tests find an engine and virtual machines with these images."""
        self.upload(engine_archive(images), COPY)
        for name, target in PROGRAMS.items():
            self.run("sh", "-c", LINK, target, f"{COPY}/{name}")

    def upload(self, archive: bytes, directory: str) -> None:
        """Unpack a tar archive into a directory of the node."""
        self.run("sh", "-c", 'mkdir -p "$0" && exec tar -C "$0" -xf -', directory, given=archive)

    def run(self, *argv: str, given: bytes = b"", timeout_s: float = 60.0) -> str:
        """Run a command to its end and return its output; RuntimeError if it fails."""
        ended = self._ended(argv, given=given, timeout_s=timeout_s)
        if ended.status != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {ended.status}:\n{ended.output}")
        return ended.output

    def run_python(
        self,
        arguments: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        in_root_cgroup: bool = False,
    ) -> int:
        """Run the interpreter in the copy of the checkout and print what it writes; return its exit status.

        :param timeout_s: how long it may be silent; RuntimeError with the node's console says that it was.
        """
        wrapper = ["sh", "-c", IN_ROOT_CGROUP, "sh"] if in_root_cgroup else []
        ended = self._ended(
            [*wrapper, PYTHON, *arguments],
            cwd=COPY,
            env={"SANDBOXD_NODE": "1", "TMPDIR": "/var/tmp", **(env or {})},
            timeout_s=timeout_s,
            on_output=lambda text: print(text, end="", flush=True),
        )
        return ended.status

    def _ended(self, argv: Sequence[str], **options: Any) -> Ended:
        try:
            return self.channel.run(argv, **options)
        except OSError as error:
            raise RuntimeError(f"{' '.join(argv)}: {error!r}\n{self.machine.evidence()}") from None

    def close(self) -> None:
        """End it; nothing is left of it. Idempotent."""
        self.machine.close()


if __name__ == "__main__":
    sys.stdout.write(f"{ready()}\n")
