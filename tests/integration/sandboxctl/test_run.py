"""Pods without an engine: a real daemon, a real runtime, and nothing left when they are gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from common.linux.terminal import set_window_size
from tests.children import children_of
from tests.integration.daemon.lab import IMAGE, Daemon
from tests.integration.sandboxctl.conftest import Machine, eventually, inner_pid

POD = f"""\
volumes: [{{name: shared, emptyDir: {{}}}}]
initContainers:
  - name: first
    image: {IMAGE}
    command: [sh, -c, "echo prepared > /data/file"]
    volumeMounts: &mounts [{{name: shared, mountPath: /data}}]
containers:
  - name: one
    image: {IMAGE}
    command: [sh, -c, "cat /data/file; echo one > /data/one"]
    volumeMounts: *mounts
  - name: two
    image: {IMAGE}
    command: [sh, -c, "while ! [ -e /data/one ]; do sleep 0.01; done; id -u; hostname; exit 4"]
    securityContext: {{runAsUser: 7}}
    volumeMounts: *mounts
"""

POD_WITH_PART = f"""\
volumes: [{{name: shared, VOLUME}}]
initContainers:
  - name: first
    image: {IMAGE}
    command: [sh, -c, "MAKE"]
    volumeMounts: [{{name: shared, mountPath: /data}}]
containers:
  - name: one
    image: {IMAGE}
    command: [sh, -c, "touch /part/file && echo there"]
    volumeMounts: [{{name: shared, mountPath: /part, subPath: part/inner}}]
"""


def test_output_and_exit_code_are_the_containers(machine: Machine) -> None:
    assert machine.run("sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")


def test_input_is_handed_on_to_its_end(machine: Machine) -> None:
    text = "line\n" * 50_000
    assert machine.run("wc", "-c", options=("-i",), input=text) == (0, f"{len(text)}\n", "")


def test_input_that_nobody_reads_is_no_failure(machine: Machine) -> None:
    assert machine.run("true", options=("-i",), input="") == (0, "", "")
    assert machine.run("sh", "-c", "exit 3", options=("-i",), input="line\n" * 50_000) == (3, "", "")


def wait_for_log(machine: Machine, ending: bytes) -> None:
    """Wait until the log of the only pod is complete."""
    logs = machine.lab.path("/var/lib/sandboxd/embedded")
    eventually(lambda: any(log.read_bytes().endswith(ending) for log in logs.glob("*/*.log")), "a whole log")


def test_all_output_reaches_a_reader_that_begins_after_the_end(machine: Machine) -> None:
    words = ("run", "--rm", IMAGE, "--", "seq", "20000")
    with machine.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        wait_for_log(machine, b"\n20000\n")
        assert process.stdout.read().split() == [str(number) for number in range(1, 20001)]
    assert process.returncode == 0


def test_a_signal_ends_the_wait_for_a_reader_that_never_begins(machine: Machine) -> None:
    words = ("run", "--rm", IMAGE, "--", "seq", "20000")
    with machine.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        wait_for_log(machine, b"\n20000\n")
        inner = inner_pid(process)

        def has_ended_when_told() -> bool:
            with contextlib.suppress(ProcessLookupError):
                os.kill(inner, signal.SIGTERM)
            return process.poll() is not None

        eventually(has_ended_when_told, "the end of a command whose output nobody reads")


def test_without_i_there_is_no_input(machine: Machine) -> None:
    assert machine.run("cat", input="unheard") == (0, "", "")


def test_a_terminal(machine: Machine) -> None:
    ours, theirs = pty.openpty()
    set_window_size(ours, 77, 33)
    command = (
        "run",
        "--rm",
        "-it",
        IMAGE,
        "--",
        "sh",
        "-c",
        "read line; stty size; tty; echo got $line; exit 5",
    )
    process = machine.start(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    # What was typed before that is dropped, as by any program that switches (termios(3), TCSAFLUSH).
    eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ICANON, "a terminal that passes every key on")
    os.write(ours, b"hello\r")
    assert process.wait(60) == 5
    shown = _read_all(ours).decode()
    os.close(ours)
    assert "33 77\r\n/dev/pts/0\r\ngot hello\r\n" in shown


def _read_all(terminal: int) -> bytes:
    """What was written to a terminal's other end, which nobody has any more: that comes in parts, and then EIO."""
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 4096):
            shown += part
    return shown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_container(machine: Machine, signum: signal.Signals) -> None:
    script = "trap 'echo bye; exit 9' INT TERM; echo ready; while :; do sleep 0.01; done"
    process = machine.start("run", "--rm", IMAGE, "--", "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(inner_pid(process), signum)
    assert process.communicate(timeout=60)[0] == "bye\n"
    assert process.returncode == 9


def test_a_signal_is_heard_while_another_adds_a_pod(machine: Machine) -> None:
    assert machine.run("true")[0] == 0
    lock = os.open(machine.lab.path("/run/sandboxd/embedded/.lock"), os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = machine.start("run", "--rm", IMAGE, "--", "true")
        eventually(lambda: ".lock" in _open_files_of_child(process.pid), "it waits")
        os.kill(inner_pid(process), signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        os.close(lock)


def _open_files_of_child(pid: int) -> set[str]:
    files = set()
    for fd in (fd for child in children_of(pid) for fd in Path(f"/proc/{child}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            files.add(os.path.basename(os.readlink(fd)))
    return files


def test_what_ignores_a_signal_is_killed(machine: Machine) -> None:
    command = ("run", "--rm", "--stop-timeout", "0.1", IMAGE, "--", "sh", "-c", "echo ready; exec sleep 1000")
    process = machine.start(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(inner_pid(process), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 137


def test_volumes_limits_and_users(machine: Machine) -> None:
    volume = machine.lab.path("/run/volume")
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text("from here")
    options = ("-v", "/run/volume:/in:ro", "-v", "/run/volume:/out", "--memory", "64Mi", "--cpus", "0.5")
    script = (
        "cat /in/file; echo; touch /in/no 2>/dev/null || echo read-only; echo there > /out/back; id -u; pwd; echo $A;"
        " cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null"
        " || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"
    )
    more = ("-u", "nobody", "-w", "/tmp", "-e", "A=b")
    os.chmod(volume, 0o777)
    code, output, errors = machine.run("sh", "-c", script, options=(*options, *more))
    assert (code, errors) == (0, "")
    assert output.split() == [
        "from",
        "here",
        "read-only",
        "65534",
        "/tmp",
        "b",
        "67108864",
        "50000",
    ] or output.split()[-3:] == ["67108864", "50000", "100000"]
    assert (volume / "back").read_text() == "there\n"


def test_the_root_file_system_is_the_containers_own(machine: Machine) -> None:
    for _ in range(2):
        assert machine.run("sh", "-c", "[ ! -e /new ] && touch /new && rm /etc/passwd")[0] == 0
    assert machine.lab.path(f"{IMAGE}/etc/passwd").exists()
    code, _, errors = machine.run("touch", "/new", options=("--read-only",))
    assert code == 1
    assert "Read-only" in errors


def test_ports_of_this_machine_lead_to_the_pod(machine: Machine) -> None:
    pod = machine.detach(
        "sh", "-c", "echo page > /tmp/index.html; exec httpd -f -p 80 -h /tmp", options=("-p", "8099:80")
    )
    ask = ("wget", "-q", "-O", "-", "http://127.0.0.1:8099/")
    eventually(
        lambda: (
            subprocess.run(machine.lab.namespaces.command(ask), capture_output=True, check=False).stdout
            == b"page\n"
        ),
        "the page",
    )
    machine.remove(pod)
    assert "8099" not in machine.lab.run("iptables", "-t", "nat", "-S")


def test_the_network_is_none_the_hosts_or_a_bridge(machine: Machine) -> None:
    links = "ls /proc/sys/net/ipv4/conf"
    assert machine.run("sh", "-c", links)[1].split() == ["all", "default", "lo"]
    assert machine.run("sh", "-c", links, options=("--network", "bridge"))[1].split() == [
        "all",
        "default",
        "eth0",
        "lo",
    ]
    host = machine.lab.run("ls", "/proc/sys/net/ipv4/conf").split()
    assert machine.run("sh", "-c", links, options=("--network", "host"))[1].split() == host


def test_containers_of_a_manifest_share_what_the_pod_has(machine: Machine) -> None:
    machine.lab.path("/run/pod.yaml").write_text(POD)
    code, output, errors = machine.ctl("run", "--rm", "-f", "/run/pod.yaml")
    assert (code, errors) == (4, "")
    assert sorted(output.splitlines()) == ["one | prepared", "two | 7", "two | pod"]


@pytest.mark.parametrize("volume", ["emptyDir: {}", "hostPath: {path: /run/volume}"])
def test_a_part_of_a_volume_is_never_behind_a_link(machine: Machine, volume: str) -> None:
    machine.lab.run("mkdir", "-p", "/run/volume", "/run/secret")
    machine.lab.path("/run/secret/file").write_text("secret")
    manifest = POD_WITH_PART.replace("VOLUME", volume)
    machine.lab.path("/run/pod.yaml").write_text(manifest.replace("MAKE", "mkdir -p /data/part/inner"))
    assert machine.ctl("run", "--rm", "-f", "/run/pod.yaml") == (0, "one | there\n", "")
    machine.lab.run("rm", "-rf", "/run/volume/part")
    machine.lab.path("/run/pod.yaml").write_text(manifest.replace("MAKE", "ln -s /run/secret /data/part"))
    code, output, errors = machine.ctl("run", "--rm", "-f", "/run/pod.yaml")
    assert (code, output) == (125, "")
    assert errors == "sandboxctl: the subPath 'part/inner' leads through 'part', which is a link\n"
    assert os.listdir(machine.lab.path("/run/secret")) == ["file"]
    machine.lab.run("rm", "-r", "/run/volume", "/run/secret")


def test_what_a_container_writes_to_is_not_in_memory(machine: Machine) -> None:
    pod = machine.detach("sh", "-c", "echo written > /etc/hosts; echo done; sleep 1000")
    try:
        eventually(lambda: machine.log(pod), "it runs")
        assert machine.lab.path(f"/var/lib/sandboxd/embedded/{pod}/hosts").read_text() == "written\n"
    finally:
        machine.remove(pod)


def test_a_failed_init_container_ends_the_pod(machine: Machine) -> None:
    machine.lab.path("/run/pod.yaml").write_text(POD.replace("echo prepared > /data/file", "exit 6"))
    code, output, errors = machine.ctl("run", "--rm", "-f", "/run/pod.yaml")
    assert (code, output) == (125, "")
    assert errors == (
        "sandboxctl: the init container first has failed with exit code 6, so the pod was not started\n"
    )


def test_a_signal_to_an_init_container_starts_nothing_more(machine: Machine) -> None:
    script = "trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done"
    machine.lab.path("/run/pod.yaml").write_text(POD.replace("echo prepared > /data/file", script))
    process = machine.start(
        "run", "--rm", "-f", "/run/pod.yaml", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "first | ready\n"
    os.kill(inner_pid(process), signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (125, "")
    assert "interrupted while the init container first ran" in errors


def test_a_configured_daemon_is_used_where_one_runs(machine: Machine) -> None:
    daemon = Daemon(machine.lab, "configured")
    try:
        import asyncio

        asyncio.run(daemon.start())
        pod = machine.ctl(
            "--config", f"{daemon.base}/config.yaml", "run", "-d", IMAGE, "--", "sleep", "1000"
        )[1].strip()
        assert os.listdir(machine.lab.path("/run/sandboxd/embedded/.daemons")) == []
        assert machine.lab.path(f"{daemon.state_dir}/{pod}").exists()
        assert machine.ctl("--config", f"{daemon.base}/config.yaml", "rm", "--force", pod)[0] == 0
    finally:
        daemon.remove()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("nothing:here", "--", "true"), "there is no nothing:here"),
        ((IMAGE,), "its image names no command"),
        ((IMAGE, "--", "absent"), "not found"),
        (("-u", "stranger", IMAGE, "--", "true"), "knows no user 'stranger'"),
        (("-v", "/absent:/x", IMAGE, "--", "true"), "does not exist: /absent"),
        (("-p", "80:80", "--network", "none", IMAGE, "--", "true"), "nothing reaches the pod"),
        (("--network", "absent", IMAGE, "--", "true"), "there is no network 'absent'"),
        (("--name", "a b/c", IMAGE, "--", "true"), "pod id 'a b/c' is not allowed"),
        (("--stop-timeout", "nan", IMAGE, "--", "true"), "--stop-timeout nan: expected"),
        (("--memory", "much", IMAGE, "--", "true"), "no amount of memory"),
        (("-d", "--rm", IMAGE, "--", "true"), "exclude each other"),
        (("-it", IMAGE, "--", "true"), "no terminal"),
        (("-d", "-i", IMAGE, "--", "true"), "leave -i and -t out"),
        (("-f", "/absent.yaml"), "no such file"),
        (("--config", "/absent.yaml", IMAGE, "--", "true"), "no such file"),
        ((), "say what to run"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    machine: Machine, words: tuple[str, ...], complaint: str
) -> None:
    code, output, errors = machine.ctl("run", *words)
    assert (code, output) == (125, "")
    assert complaint in errors
    assert errors.count("\n") == 1
