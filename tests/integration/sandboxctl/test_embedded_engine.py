"""What stands behind `sandboxctl run`: records, daemons of its own and images, and what goes with the last pod."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from dataclasses import asdict

import pytest

from common.records import boot_id, write_record
from sandboxctl.embedded.records import ContainerRecord, PodRecord
from tests.integration.daemon.lab import IMAGE
from tests.integration.sandboxctl.conftest import Machine, daemon_of, eventually, inner_pid, supervisors


def test_a_detached_pod_goes_on_and_its_log_with_it(machine: Machine) -> None:
    pod = machine.detach("sh", "-c", "echo out; echo err >&2; exec sleep 1000", options=("--name", "sleeper"))
    eventually(lambda: machine.log(pod) == "out\nerr\n", "the log")
    assert machine.ctl("ps")[1].splitlines()[1].split()[0] == pod
    code, _, errors = machine.ctl("run", "--name", "sleeper", IMAGE, "--", "true")
    assert (code, errors.count("\n")) == (125, 1)
    assert "a pod sleeper runs already" in errors
    machine.remove(pod)


def test_a_detached_pod_does_not_notice_that_its_daemon_dies(machine: Machine) -> None:
    pod = machine.detach("sh", "-c", "while :; do echo tick; sleep 0.05; done")
    (supervisor,) = supervisors(machine)
    machine.lab.run("kill", "-KILL", daemon_of(machine, supervisor))
    eventually(lambda: machine.ctl("inspect", pod)[0] == 0, "another daemon")
    ticks = machine.log(pod).count("tick")
    eventually(lambda: machine.log(pod).count("tick") > ticks, "the log going on")
    machine.remove(pod)


def test_a_private_daemon_takes_no_address_of_the_one_that_gives_it_settings(machine: Machine) -> None:
    machine.lab.path("/run/runc.yaml").write_text(
        "socket: /run/nobody.sock\nstate_dir: /run/nobody\nmetrics: {address: 'tcp://127.0.0.1:9640'}\n"
        "pod: {shm_size_mib: 1}\n"
    )
    code, pod, errors = machine.ctl("--config", "/run/runc.yaml", "run", "-d", IMAGE, "--", "sleep", "1000")
    assert (code, errors) == (0, "")
    config = machine.lab.path("/run/sandboxd/embedded/.daemons/runc/config.yaml")
    settings = json.loads(config.read_text())
    machine.remove(pod.strip())
    assert (settings["metrics"], settings["pod"]) == ({"address": ""}, {"shm_size_mib": 1})


def test_a_daemon_that_cannot_be_started_again_takes_nothing_of_its_pods_along(machine: Machine) -> None:
    pod = machine.detach("sleep", "1000")
    directory = machine.lab.path("/run/sandboxd/embedded/.daemons/runc")
    (supervisor,) = supervisors(machine)
    machine.lab.run("kill", "-KILL", supervisor, daemon_of(machine, supervisor))
    # As virtual machines have their volumes.
    volume, shared = machine.lab.path("/run/shared-volume"), directory / "state" / pod / "shared"
    volume.mkdir()
    (volume / "file").write_text("of the user")
    shared.mkdir()
    machine.lab.run("mount", "--bind", "/run/shared-volume", f"/{shared.relative_to(machine.lab.path('/'))}")
    (directory / "api.sock").unlink()
    (directory / "api.sock/obstacle").mkdir(parents=True)
    code, _, errors = machine.ctl("run", IMAGE, "--", "true")
    assert (code, errors.count("\n")) == (125, 1)
    assert "no daemon of the type runc can be started" in errors
    assert supervisors(machine) == []
    assert (volume / "file").read_text() == "of the user"
    assert (directory / "state" / pod / "sandbox.json").exists()
    machine.lab.run("umount", f"/{shared.relative_to(machine.lab.path('/'))}")
    (directory / "api.sock/obstacle").rmdir()
    (directory / "api.sock").rmdir()
    # What the log tells of the first attempt is no reason for the second one to fail.
    assert machine.run("echo", "another") == (0, "another\n", "")
    machine.remove(pod)


def test_no_second_daemon_is_started_while_the_first_is_about_to_return(machine: Machine) -> None:
    pod = machine.detach("sleep", "1000")
    (supervisor,) = supervisors(machine)
    daemon = daemon_of(machine, supervisor)
    machine.lab.run("kill", "-STOP", supervisor)
    machine.lab.run("kill", "-KILL", daemon)
    eventually(lambda: machine.lab.processes().get(int(daemon), "") != "sandboxd", "the daemon's end")
    process = machine.start("run", "--rm", IMAGE, "--", "true")
    lock = machine.lab.path("/run/sandboxd/embedded/.lock")

    def is_taken() -> bool:
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    eventually(is_taken, "a command that waits for the daemon")
    machine.lab.run("kill", "-CONT", supervisor)
    assert process.wait(60) == 0
    assert supervisors(machine) == [supervisor]
    machine.remove(pod)


def test_a_pod_whose_record_cannot_be_read_keeps_its_daemon(machine: Machine) -> None:
    pod = machine.detach("sleep", "1000")
    record = machine.lab.path(f"/run/sandboxd/embedded/{pod}/pod.json")
    content = record.read_text()
    record.write_text("{")
    code, output, errors = machine.run("echo", "another")
    assert (code, output, errors.count("\n")) == (0, "another\n", 1)
    assert f"{pod}/pod.json is damaged" in errors
    assert machine.ctl("exec", pod, "--", "echo", "runs") == (0, "runs\n", "")
    record.write_text(content)
    machine.remove(pod)


def test_what_pods_of_earlier_boots_have_written_is_removed_and_nothing_else(machine: Machine) -> None:
    pod = machine.detach("sleep", "1000")
    data = machine.lab.path("/var/lib/sandboxd/embedded")
    mark = (data / pod / ".pod.json").read_text()
    for name, text in {
        "now": mark,
        "earlier": mark.replace(boot_id(), "another boot"),
        "unknown": "",
    }.items():
        (data / name).mkdir()
        (data / name / "main.log").touch()
        (data / name / ".pod.json").write_text(text)
    assert machine.run("true") == (0, "", "")
    assert {path.name for path in data.iterdir()} == {pod, "now", "unknown"}
    for name in "now", "unknown":
        shutil.rmtree(data / name)
    machine.remove(pod)


def test_what_a_killed_command_has_begun_is_removed_by_the_next_one(machine: Machine) -> None:
    runtime, hang = machine.lab.path("/run/runtime"), machine.lab.path("/run/hang")
    runtime.write_text('#!/bin/sh\nwhile [ -e /run/hang ]; do sleep 0.01; done\nexec crun "$@"\n')
    runtime.chmod(0o755)
    config = machine.lab.path("/run/runc.yaml")
    config.write_text("runtime: {binary: /run/runtime}\nsocket: /run/nobody.sock\nstate_dir: /run/nobody\n")
    hang.touch()
    options = ("--config", "/run/runc.yaml", "run", "--rm", "--network", "bridge")
    process = machine.start(*options, IMAGE, "--", "true")
    embedded = machine.lab.path("/run/sandboxd/embedded")
    eventually(lambda: list(embedded.glob("*/bundles/*/stdout")), "the pod")
    os.kill(inner_pid(process), signal.SIGKILL)
    process.wait(60)
    hang.unlink()
    assert len(list(embedded.glob("*/pod.json"))) == 1
    assert machine.run("echo", "another")[1] == "another\n"


def test_a_record_that_makes_no_sense_stops_nobody(machine: Machine) -> None:
    directory = machine.lab.path("/run/sandboxd/embedded/senseless")
    directory.mkdir(parents=True)
    path = directory / "pod.json"
    write_record(str(path), PodRecord("senseless", "senseless", "runc", "/absent.yaml", 0, 1.0, actor=[1, 2]))
    path.write_text(path.read_text().replace("[1,2]", "[1,2,3]"))
    code, output, errors = machine.run("echo", "another")
    assert (code, output) == (0, "another\n")
    assert "pod.not_removed" in errors and "actor is no pid" in errors
    assert path.exists()
    shutil.rmtree(directory)


def test_images_that_no_pod_uses_are_shown_and_removed_when_that_is_asked_for(machine: Machine) -> None:
    images, pod = machine.lab.path("/var/lib/sandboxd/images"), machine.lab.path("/run/sandboxd/embedded/pod")
    used, unused, foreign = "a" * 64, "b" * 64, "not-an-image"
    for name in used, unused, foreign:
        (images / name / "rootfs").mkdir(parents=True)
    pod.mkdir(parents=True)
    container = asdict(ContainerRecord("c", "main", "web", f"sha256:{used}", "SIGTERM"))
    write_record(
        str(pod / "pod.json"), PodRecord("pod", "pod", "runc", "/absent.yaml", 0, 1.0, containers=[container])
    )

    def collect(*options: str) -> tuple[int, str]:
        code, output, _ = machine.ctl("gc", "--json", *options)
        (row,) = json.loads(output)
        assert (row["kind"], row["what"]) == ("image", f"/var/lib/sandboxd/images/{unused}")
        return code, row["action"]

    assert collect() == (0, "keep")
    assert collect("--images", "--dry-run") == (0, "remove")
    record = (pod / "pod.json").read_text()
    (pod / "pod.json").write_text("{")
    code, output, errors = machine.ctl("gc", "--images")
    assert (code, output, "all images stay" in errors) == (1, "nothing is left over\n", True)
    (pod / "pod.json").write_text(record)
    # Of a removal that was cut off.
    (images / f".removing-{unused}" / "rootfs").mkdir(parents=True)
    assert collect("--images") == (0, "removed")
    assert {path.name for path in images.iterdir()} == {used, foreign}
    shutil.rmtree(images)
    shutil.rmtree(pod)


def test_what_is_neither_a_user_nor_a_signal_is_said_in_one_line(machine: Machine) -> None:
    pod = machine.detach("sleep", "1000")
    try:
        for words in (
            ("exec", "-u", "²", pod, "id"),
            ("exec", "-u", "9" * 5000, pod, "id"),
            ("stop", "-s", "²", pod),
        ):
            code, output, errors = machine.ctl(*words)
            assert code != 0
            assert (output, errors.count("\n")) == ("", 1), errors
    finally:
        machine.remove(pod)


def test_a_command_runs_as_whom_the_container_knows(machine: Machine) -> None:
    pod = machine.detach(
        "sh", "-c", "echo web:x:33:34::/: >> /etc/passwd; echo logs:x:40:web >> /etc/group; sleep 1000"
    )
    try:
        eventually(lambda: machine.ctl("exec", pod, "grep", "web", "/etc/group")[0] == 0, "the accounts")
        words = ("exec", "-u", "web", pod, "sh", "-c", "id -u; id -g; id -G")
        assert machine.ctl(*words) == (0, "33\n34\n34 40\n", "")
        code, output, errors = machine.ctl("exec", "-u", "stranger", pod, "id")
        assert (code, output, "knows no user 'stranger'" in errors) == (125, "", True)
    finally:
        machine.remove(pod)


@pytest.mark.parametrize("verb", ["rm", "gc"])
def test_a_removal_that_has_failed_can_be_repeated(machine: Machine, verb: str) -> None:
    pod = machine.detach("sleep", "1000", options=("--name", "stubborn"))
    obstacle = f"/var/lib/sandboxd/embedded/{pod}/obstacle"
    machine.lab.path(obstacle).mkdir()
    machine.lab.run("mount", "-t", "tmpfs", "tmpfs", obstacle)
    again = ("gc",) if verb == "gc" else ("rm", "stubborn")
    for command in ("rm", "--force", pod), again:
        code, _, errors = machine.ctl(*command)
        assert (code, pod in errors) == (1, True)
    assert machine.ctl("ps")[1].splitlines()[1].split()[0] == pod
    machine.lab.run("umount", obstacle)
    assert machine.ctl(*again)[::2] == (0, "")
    assert machine.ctl("ps", "-q") == (0, "", "")


def test_a_pod_that_has_ended_stays_until_it_is_removed(machine: Machine) -> None:
    assert machine.ctl("run", "--name", "ended", IMAGE, "--", "sh", "-c", "echo bye; exit 4") == (
        4,
        "bye\n",
        "",
    )
    row = machine.ctl("ps")[1].splitlines()[1].split()
    assert row[2] == "stopped"
    assert machine.log(row[0]) == "bye\n"
    machine.remove(row[0])
