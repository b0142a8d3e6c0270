"""`make demo-wasm`: modules, compiled here and packed into an image, as containers: without an engine, then of a pod
under a containerd."""

import sys

import grpc

from proto.gen.runtime.v1 import api_pb2 as api
from tests import modules
from tests.engine.cri import container_config, log_lines, pod_config
from tests.engine.demo import Narrator, perform, process_tree, remove_pod, show_usage
from tests.engine.demo_embedded import terminal_of_its_own
from tests.engine.engine import Engine
from tests.engine.handlers import WASM
from tests.engine.images import BUSYBOX, MODULES, WASM_LAYOUT
from tests.engine.namespaces import wait_until
from tests.engine.parts import prepare


def main() -> int:
    scripts = (["install-packages", "wasm"], ["fetch-engine"], ["build-images", "wasm"])
    print("WebAssembly modules as containers, without an engine\n")
    narrator = Narrator()
    with narrator.step("compile the modules, pack them into an image"):
        prepare("demo", *scripts)
    with terminal_of_its_own(narrator) as terminal:
        image = ("--rm", "--type", "wasm", f"{WASM_LAYOUT}:{MODULES}", "--")
        for words in (("/hello.wasm",), ("/say.wasm", "to standard output", "to standard error", "0")):
            terminal.type("run", *image, *words, shown=f"sandboxctl run --rm --type wasm IMAGE -- {words[0]}")
    print("\nThe same of a pod, under a real containerd\n")
    return perform(WASM, show_modules, *scripts)


def show_modules(engine: Engine, narrator: Narrator) -> None:
    cri = engine.cri
    sizes = [
        f"{name + '.wasm':<22}{modules.module(name).stat().st_size:>7} bytes"
        for name in ("hello", "say", "lines")
    ]
    narrator.show("some of the modules in the image, compiled from tests/modules:", "\n".join(sizes))
    logs = engine.directory / "pod-logs"
    pod = pod_config("demo", host_network=False, log_directory=str(logs), cgroup_parent="/demo")
    with narrator.step("RunPodSandbox: network, shared namespaces"):
        pod_id = cri.run_pod(pod, WASM.name)

    def start(name: str, *command: str) -> str:
        config = container_config(command, name=name, image=MODULES, log_path=f"{name}.log")
        container = cri.create(pod_id, config, pod)
        cri.start(container)
        return container

    def run(name: str, *command: str) -> tuple[int, str]:
        container = start(name, *command)
        wait_until(lambda: cri.container(container).finished_at > 0, timeout_s=20, what="the module's end")
        return cri.container(container).exit_code, "\n".join(log_lines(logs / f"{name}.log"))

    with narrator.step("a module for the first time: it is compiled and kept"):
        run("first", "/hello.wasm")
    with narrator.step("the same module again"):
        code, text = run("again", "/hello.wasm")
    narrator.show(f"its log, and its exit code {code}:", text)
    with narrator.step("a component of the world wasi:cli/command"):
        code, text = run("component", "/component.wasm")
    narrator.show(f"its log, and its exit code {code}:", text)

    with narrator.step("two containers that stay, each with a module of its own"):
        containers = [start("lines", "/lines.wasm", "1", "200", "0"), start("sleeper", "/sleeper.wasm")]
    with narrator.step("exec of another module in one of them"):
        answer = cri.exec(containers[1], ["/say.wasm", "to standard output", "to standard error", "3"])
    both = answer.stdout.decode() + answer.stderr.decode()
    narrator.show(f"what it says, and its exit code {answer.exit_code}:", both)
    code, text = run("trap", "/trap.wasm")
    narrator.show(f"a module that traps, with the exit code {code}:", text)
    narrator.show("an image that is no module:", refusal(engine, pod_id, pod))

    show_usage(engine, narrator, containers)
    with narrator.step("StopContainer of one of them"):
        cri.stop_container(containers[0], grace_s=10)
    narrator.show("its exit code:", str(cri.container(containers[0]).exit_code))
    remove_pod(engine, narrator, pod_id)
    left = [line for line in process_tree(engine.namespaces.root / "proc") if ".wasm" in line]
    if left:
        raise RuntimeError(f"processes of the pod are left: {left}")


def refusal(engine: Engine, pod_id: str, pod: api.PodSandboxConfig) -> str:
    """What is said of a container that another handler would have to run."""
    config = container_config(["/bin/sh"], name="shell", image=BUSYBOX)
    container = engine.cri.create(pod_id, config, pod)
    try:
        engine.cri.start(container)
    except grpc.RpcError as error:
        return str(error.details()).rpartition("failed to create shim task: ")[2]
    raise RuntimeError("a shell runs in a pod of modules")


if __name__ == "__main__":
    sys.exit(main())
