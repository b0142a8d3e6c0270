"""`make demo`: pods without an engine, by the commands that a user would type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engine.demo import ASK, SERVE, Narrator, process_tree
from tests.engine.images import BUSYBOX, CHECKOUT, DEMO_LAYOUT
from tests.engine.namespaces import Namespaces, wait_until
from tests.engine.parts import prepare

_TIMEOUT_S = 120

POD = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: demo}}
spec:
  containers:
    - name: web
      image: {DEMO_LAYOUT}:{BUSYBOX}
      command: [sh, -c, "{SERVE}"]
      ports: [{{containerPort: 8080, hostPort: 8080}}]
    - name: client
      image: {DEMO_LAYOUT}:{BUSYBOX}
      command: [sleep, "3600"]
      resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
"""


class Terminal:
    """A machine of its own where commands are typed, shown with what they print, and timed."""

    def __init__(self, directory: Path, narrator: Narrator) -> None:
        self.directory = directory
        self.namespaces = Namespaces(directory, directory.name)
        self._narrator = narrator

    def type(self, *words: str, shown: str = "") -> str:
        """Run `sandboxctl` inside, show it with its output, and return that.

        :raise RuntimeError: it fails, in its own words.
        """
        command = self.namespaces.command([sys.executable, "-m", "sandboxctl", *words])
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "80"}
        with self._narrator.step("$ " + (shown or " ".join(["sandboxctl", *words]))):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=_TIMEOUT_S
            )
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} has ended with {done.returncode}: {output}")
        for line in output.splitlines():
            print(f"    | {line}")
        return done.stdout

    def has(self, text: str) -> bool:
        """Whether some process inside has this in its command line."""
        return any(text in line for line in self.processes())

    def processes(self) -> list[str]:
        """Every process inside, as a tree."""
        return process_tree(self.namespaces.root / "proc")


def main() -> int:
    print("Pods of sandboxd, without an engine\n")
    narrator = Narrator()
    with narrator.step("build the image"):
        prepare("demo", ["build-images"])
    with terminal_of_its_own(narrator) as terminal:
        show(terminal, narrator)
    return 0


@contextmanager
def terminal_of_its_own(narrator: Narrator) -> Iterator[Terminal]:
    """A terminal on a machine that is there for a while."""
    directory = Path(tempfile.mkdtemp(prefix="sandboxd-demo-"))
    try:
        with narrator.step("private namespaces"):
            terminal = Terminal(directory, narrator)
        try:
            yield terminal
        finally:
            with narrator.step("clean up: nothing stays on this machine"):
                terminal.namespaces.close()
    finally:
        shutil.rmtree(directory)


def show(terminal: Terminal, narrator: Narrator) -> None:
    manifest = terminal.directory / "pod.yaml"
    image = f"{DEMO_LAYOUT}:{BUSYBOX}"
    terminal.type(
        *("run", "--rm", image, "--", "sh", "-c", "echo hello from $(hostname)"),
        shown="sandboxctl run --rm IMAGE -- sh -c 'echo hello ...'",
    )
    manifest.write_text(POD)
    narrator.show("a pod as Kubernetes has it, of two containers:", POD)
    terminal.type(
        *("run", "-d", "--network", "bridge", "-f", str(manifest)),
        shown="sandboxctl run -d --network bridge -f pod.yaml",
    )
    wait_until(lambda: terminal.has("httpd"), timeout_s=20, what="the web server")
    terminal.type("ps", "-c")
    terminal.type(
        *("exec", "client", "--", "sh", "-c", f"hostname; {ASK}"),
        shown="sandboxctl exec client -- sh -c 'hostname; wget ...'",
    )
    page = terminal.namespaces.run(["wget", "-q", "-O", "-", "http://localhost:8080/"]).stdout
    narrator.show("the same page on a port of the machine:", page)
    terminal.type("logs", "web")
    terminal.type("stats", "--once")
    tree = terminal.processes()
    narrator.show("every process there is (1 is the namespaces' own; no shim, no pause):", "\n".join(tree))
    terminal.type("stop", "--timeout", "1", "demo")
    terminal.type("rm", "demo")
    if left := [line for line in terminal.processes() if "httpd" in line or "sandboxers" in line]:
        raise RuntimeError(f"processes are left: {left}")


if __name__ == "__main__":
    sys.exit(main())
