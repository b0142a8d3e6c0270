"""The program: notes when it began, and then loads the agent, which takes most of its start.

    python -m vmm.agent                                                PID 1: over vsock, ends by resetting the machine
    python -m vmm.agent --transport unix:///DIR --directory DIR ...    elsewhere, with `Settings` of its own

In a guest's image all that is loaded now is one file (`vmm.image.guest_bundle`): looking for a hundred and fifty
modules takes longer, on a processor that is emulated, than running them.
"""

import gc
import marshal
import os
import sys
import time

BUNDLE = "/agent.bundle"


def main() -> int:
    """Run the agent."""
    began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if os.getpid() == 1 and os.path.exists(BUNDLE):
        # Nothing of this is garbage, and the agent turns the collector on again.
        gc.disable()
        load(BUNDLE)
    from vmm.agent import agent

    return agent.main(sys.argv[1:], began_ns)


def load(path: str) -> None:
    """Load the modules of a bundle, each of which needs only those before it.

    Where an import looks for others, and extension modules, is the directory that the bundle names.
    """
    with open(path, "rb") as file:
        directory, entries = marshal.loads(file.read())
    new_module = type(sys)
    for name, is_package, _ in entries:
        module = sys.modules[name] = new_module(name)
        parent, _, leaf = name.rpartition(".")
        module.__package__ = name if is_package else parent
        if is_package:
            module.__path__ = [f"{directory}/{name.replace('.', '/')}"]
    for name, _, code in entries:
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, sys.modules[name])
        exec(code, sys.modules[name].__dict__)


if __name__ == "__main__":
    sys.exit(main())
