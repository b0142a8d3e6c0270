"""The same commands for the other isolation types."""

from __future__ import annotations

import time

import pytest

from tests import modules
from tests.engine.qemu import write_config
from tests.integration.daemon.lab import IMAGE
from tests.integration.sandboxctl.conftest import Machine


def test_a_module_without_an_engine(machine: Machine) -> None:
    directory = machine.lab.path("/run/modules")
    directory.mkdir()
    (directory / "say.wasm").write_bytes(modules.module("say").read_bytes())
    command = ("run", "--rm", "--type", "wasm", "/run/modules", "--", "/say.wasm", "out", "err", "3")
    assert machine.ctl(*command) == (3, "out\n", "err\n")


@pytest.mark.timeout(180)
def test_a_virtual_machine_without_an_engine(machine: Machine) -> None:
    config = str(write_config(machine.lab.directory))
    script = "uname -n; echo err >&2; cat /volume/file; exec sleep 1000"
    volume = machine.lab.path("/run/volume")
    volume.mkdir()
    (volume / "file").write_text("from here\n")
    options = ("--type", "qemu", "--hostname", "guest", "--network", "bridge", "-v", "/run/volume:/volume:ro")
    code, output, errors = machine.ctl(
        "--config", config, "run", "-d", *options, IMAGE, "--", "sh", "-c", script
    )
    assert (code, errors) == (0, "")
    pod = output.strip()
    deadline = time.monotonic() + 20
    while sorted(machine.log(pod).splitlines()) != ["err", "from here", "guest"]:
        assert time.monotonic() < deadline, machine.log(pod)
        time.sleep(0.01)
    kernel = machine.ctl("exec", pod, "--", "uname", "-r")[1]
    assert kernel != machine.lab.run("uname", "-r")
    machine.remove(pod)
