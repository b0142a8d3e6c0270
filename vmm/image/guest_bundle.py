"""Put the modules that a program loads at its start into one file; run by the guest's own interpreter.

    python guest_bundle.py TARGET DIRECTORY MODULE[,MODULE...] SEARCH_DIR...

The file has the code of each module, in an order in which each needs only those before it, and says that others are
in DIRECTORY of the guest (`vmm.agent.__main__.load`). Of the standard library this itself loads nothing that the
interpreter has not loaded by itself: those modules stay the guest interpreter's own.
"""

import marshal
import sys


def main(target, directory, modules, search):
    """Write the file."""
    loader = sys.modules["_frozen_importlib_external"].SourceFileLoader
    execute = loader.exec_module
    finished = []

    def record(self, module):
        execute(self, module)
        finished.append(module)

    loader.exec_module = record
    sys.path[:] = search
    for name in modules:
        __import__(name)
    entries = []
    for module in finished:
        name = module.__name__
        with open(module.__file__, "rb") as file:
            # As -OO does: docstrings and assertions are for developers.
            code = compile(file.read(), f"/{name}.py", "exec", dont_inherit=True, optimize=2)
        entries.append((name, hasattr(module, "__path__"), code))
    with open(target, "wb") as file:
        file.write(marshal.dumps((directory, entries)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4:])
