"""`make demo-containerd`: one pod with two containers under a private containerd, without a shim or a pause process.

`make demo-qemu`: the same in a virtual machine.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.engine.cri import container_config, pod_config
from tests.engine.engine import Engine
from tests.engine.handlers import QEMU, RUNC, Handler
from tests.engine.namespaces import wait_until
from tests.engine.parts import prepare
from tests.engine.qemu import write_config
from tests.guest_image import guest_image

PAGE = "echo 'hello from the other container' > /www/index.html"
SERVE = f"mkdir -p /www && {PAGE} && exec httpd -f -v -p 8080 -h /www"
ASK = "wget -q -O - http://localhost:8080/"


class Narrator:
    """Prints what happens and how long it took."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        print(f"  {what:<58}", end="", flush=True)
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            print("  failed", flush=True)
            raise
        print(f"{(time.perf_counter() - began) * 1000:9.1f} ms", flush=True)

    def show(self, title: str, text: str) -> None:
        print(f"\n  {title}")
        for line in text.rstrip().splitlines():
            print(f"    | {line}")
        print()


def main() -> int:
    print("A pod of sandboxd under a real containerd\n")
    return perform(RUNC, show_pod, ["fetch-engine"], ["build-images"])


def perform(handler: Handler, show: Callable[[Engine, Narrator], None], *scripts: Sequence[str]) -> int:
    """Get what scripts make, start an engine with our handler, show something on it, and clean up."""
    narrator = Narrator()
    with narrator.step("get containerd, build the image"):
        prepare("demo", *scripts)
    with narrator.step("private namespaces"):
        engine = Engine(handler, runtimes="system", default_handler=handler.name)
    try:
        with narrator.step("containerd"):
            engine.start()
        with narrator.step("sandboxer (one process for all pods)"):
            engine.start_sandboxer(write_config(engine.directory) if handler is QEMU else None)
        show(engine, narrator)
    except BaseException:
        print(engine.evidence(), file=sys.stderr)
        raise
    finally:
        with narrator.step("clean up: nothing stays on this machine"):
            engine.close()
    return 0


def main_in_qemu() -> int:
    print("A pod of sandboxd in a virtual machine, under a real containerd\n")
    prepare("guest", ["fetch-vm-helpers"])
    guest_image()
    return perform(QEMU, show_pod, ["fetch-engine"], ["build-images"])


def show_pod(engine: Engine, narrator: Narrator) -> None:
    logs = engine.directory / "pod-logs"
    pod = pod_config(
        "demo", host_network=False, hostname="demo", log_directory=str(logs), cgroup_parent="/demo"
    )
    web = container_config(["sh", "-c", SERVE], name="web", log_path="web.log")
    client = container_config(["sleep", "3600"], name="client", log_path="client.log")
    cri = engine.cri
    with narrator.step("RunPodSandbox: network, hostname, all that the pod shares"):
        pod_id = cri.run_pod(pod, engine.ours.name)
    containers = []
    for config in (web, client):
        with narrator.step(f"create and start the container {config.metadata.name}"):
            containers.append(cri.create(pod_id, config, pod))
            cri.start(containers[-1])
    wait_until(
        lambda: cri.exec(containers[1], ["sh", "-c", ASK]).exit_code == 0, timeout_s=10, what="the web server"
    )

    with narrator.step("exec in client"):
        answer = cri.exec(containers[1], ["sh", "-c", f"hostname; {ASK}"])
    narrator.show(f"client asks web on the pod's localhost ({ASK}):", answer.stdout.decode())
    wait_until(lambda: "response" in (logs / "web.log").read_text(), timeout_s=20, what="web's log")
    narrator.show("the log of web:", "\n".join((logs / "web.log").read_text().splitlines()[-3:]))

    if engine.ours is QEMU:
        guest = cri.exec(containers[1], ["uname", "-srv"]).stdout.decode()
        narrator.show(
            "the kernels, of this machine and of the pod:", f"{' '.join(os.uname()[0:4:2])}\n{guest}"
        )
    show_usage(engine, narrator, containers)
    remove_pod(engine, narrator, pod_id)
    left = [
        line for line in process_tree(engine.namespaces.root / "proc") if "httpd" in line or "sleep" in line
    ]
    if left:
        raise RuntimeError(f"processes of the pod are left: {left}")


def show_usage(engine: Engine, narrator: Narrator, containers: Sequence[str]) -> None:
    """Show what containers use, and every process."""
    usages = []
    for container in containers:
        stats = engine.cri.stats(container)
        name, cpu_ms = stats.attributes.metadata.name, stats.cpu.usage_core_nano_seconds.value / 1e6
        memory_mib = stats.memory.working_set_bytes.value / 2**20
        usages.append(f"{name:<8} CPU {cpu_ms:8.1f} ms   memory {memory_mib:6.2f} MiB")
    narrator.show("stats:", "\n".join(usages))
    tree = process_tree(engine.namespaces.root / "proc")
    narrator.show("every process there is (1 is the namespaces' own; no shim, no pause):", "\n".join(tree))
    if any("containerd-shim" in line or "/pause" in line for line in tree):
        raise RuntimeError("a shim or a pause process runs")


def remove_pod(engine: Engine, narrator: Narrator, pod: str) -> None:
    with narrator.step("StopPodSandbox"):
        engine.cri.stop_pod(pod)
    with narrator.step("RemovePodSandbox"):
        engine.cri.remove_pod(pod)


def process_tree(proc: Path) -> list[str]:
    """The processes of a procfs, children below their parents, as `<pid> <command line>`, or `[name]`."""
    commands: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name, _, fields = entry.joinpath("stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        commands[int(entry.name)] = command.strip() or f"[{name}]"
        children.setdefault(int(fields.split()[1]), []).append(int(entry.name))

    def lines(pid: int, depth: int) -> Iterator[str]:
        for child in sorted(children.get(pid, [])):
            yield f"{child:>6} {'   ' * depth}{commands[child][:90]}"
            yield from lines(child, depth + 1)

    return list(lines(0, 0))


if __name__ == "__main__":
    sys.exit(main())
