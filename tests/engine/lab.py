"""Start an engine by hand and try things in it: `python -m tests.engine.lab --help`."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests.engine.cri import Cri, container_config, pod_config
from tests.engine.engine import ENGINE_PROGRAMS, OURS, Engine
from tests.engine.images import CHECKOUT

# Several labs can run side by side: LAB names the one that is meant.
MARKER = CHECKOUT / f".cache/lab-{os.environ.get('LAB', 'default')}.pid"


def up(arguments: argparse.Namespace) -> int:
    """Run an engine in the foreground until ^C; containerd and sandboxer log to the terminal's files."""
    if MARKER.exists() and Path(f"/proc/{MARKER.read_text().strip()}").exists():
        print(
            f"a lab named {MARKER.stem.partition('-')[2]} runs already: set LAB to another name",
            file=sys.stderr,
        )
        return 1
    with Engine(runtimes=arguments.runtimes) as engine:
        engine.start()
        print(f"engine ready; logs in {engine.logs}", flush=True)
        if arguments.sandboxer is not None:
            engine.start_sandboxer(Path(arguments.sandboxer))
            print("sandboxer ready", flush=True)
        MARKER.write_text(f"{engine.namespaces.first_pid}\n")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            MARKER.unlink(missing_ok=True)
    return 0


def sh(arguments: argparse.Namespace) -> int:
    """Run a command (or a shell) inside the running engine."""
    path = f"{ENGINE_PROGRAMS}:{CHECKOUT / '.cache/bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(CHECKOUT),
        "CONTAINER_RUNTIME_ENDPOINT": "unix:///run/containerd/containerd.sock",
        "CONTAINERD_NAMESPACE": "k8s.io",
    }
    command = [word for word in arguments.command if word != "--"] or ["bash"]
    target = MARKER.read_text().strip()
    # fmt: off
    os.execvpe("nsenter", [
        "nsenter", f"--target={target}", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--",
        *command,
    ], environment)
    # fmt: on


def pod(arguments: argparse.Namespace) -> int:
    """Run one pod with one container against a handler, exec in it, remove it; print what each step took."""
    socket = Path(f"/proc/{MARKER.read_text().strip()}/root/run/containerd/containerd.sock")
    steps: list[tuple[str, float]] = []
    began = time.perf_counter()

    def step(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        steps.append((name, (now - began) * 1000))
        print(f"{name:<12} {steps[-1][1]:7.1f} ms", flush=True)
        began = time.perf_counter()

    config = pod_config(host_network=not arguments.network)
    with Cri(socket) as cri:
        began = time.perf_counter()
        pod_id = cri.run_pod(config, arguments.handler)
        step("run pod")
        try:
            container = cri.create(pod_id, container_config(), config)
            step("create")
            cri.start(container)
            step("start")
            print(
                cri.exec(container, ["sh", "-c", "hostname; id; cat /proc/1/cgroup"]).stdout.decode(), end=""
            )
            step("exec")
            if arguments.keep:
                print(f"kept: pod {pod_id} container {container}")
                return 0
        finally:
            if not arguments.keep:
                cri.stop_pod(pod_id)
                step("stop pod")
                cri.remove_pod(pod_id)
                step("remove pod")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("up", help=up.__doc__)
    command.add_argument("--sandboxer", metavar="CONFIG", help="start sandboxd with this file too")
    command.add_argument(
        "--runtimes", choices=("recent", "system"), default="recent", help="which crun and runc"
    )
    command.set_defaults(action=up)
    command = commands.add_parser("sh", help=sh.__doc__)
    command.add_argument("command", nargs=argparse.REMAINDER)
    command.set_defaults(action=sh)
    command = commands.add_parser("pod", help=pod.__doc__)
    command.add_argument("handler", nargs="?", default=OURS)
    command.add_argument("--network", action="store_true", help="a network namespace of its own, by CNI")
    command.add_argument("--keep", action="store_true", help="leave the pod running")
    command.set_defaults(action=pod)
    arguments = parser.parse_args()
    return int(arguments.action(arguments))


if __name__ == "__main__":
    sys.exit(main())
