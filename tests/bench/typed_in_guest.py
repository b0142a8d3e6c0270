#!/usr/bin/python3 -IS
"""Started by the kernel of a guest, outside of every container: how long commands take there, as if they were typed.

It lies in a volume of a container, beside `container`: the id of one whose bundle crun is to use again. The answer is
`took`, JSON. It runs with what is in the guest image, none of this project's modules.
"""

import json
import os
import sys
import time

PYTHON = ("/usr/bin/python3", "-I", "-S", "-B", "-c", "pass")
CRUN = ("/usr/bin/crun", "--root", "/run/typed")
ID = "typed"
BUNDLE = "/run/typed-bundle"
TASKS = "/run/sandboxd/tasks"


def took_ns(*command: str) -> int:
    """Run a command to its end, its output going nowhere; return how long it took."""
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawn(command[0], command, {"PATH": "/usr/bin"}, file_actions=null)
    status = os.waitpid(pid, 0)[1]
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return time.monotonic_ns() - began_ns


def make_bundle(container: str) -> None:
    """Make a bundle as the agent has made another."""
    with open(f"{TASKS}/{container}/config.json", encoding="utf-8") as file:
        spec = json.loads(file.read())
    spec["linux"]["cgroupsPath"] = f"/pod/{ID}"
    os.makedirs(BUNDLE, exist_ok=True)
    with open(f"{BUNDLE}/config.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(spec))


def main() -> None:
    """Start an interpreter, then a container, and remove that."""
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        python_ns = took_ns(*PYTHON)
        with open(f"{here}/container", encoding="ascii") as file:
            make_bundle(file.read())
        crun_ns = took_ns(*CRUN, "create", "--bundle", BUNDLE, ID) + took_ns(*CRUN, "start", ID)
        took_ns(*CRUN, "delete", "--force", ID)
        took: dict[str, object] = {"python_s": python_ns / 1e9, "crun_s": crun_ns / 1e9}
    except Exception as error:
        took = {"error": f"{type(error).__name__}: {error}"}
    # All at once, for whoever waits for it.
    with open(f"{here}/took.new", "w", encoding="utf-8") as file:
        file.write(json.dumps(took))
    os.rename(f"{here}/took.new", f"{here}/took")


if __name__ == "__main__":
    main()
