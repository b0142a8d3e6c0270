"""Our handlers as the engine's clients see them: where each is, and what its containers can be made to do.

Trials and tests that hold for every isolation type take a handler, and say what they want by its programs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.engine.images import BUSYBOX, CHECKOUT, DEMO_LAYOUT, MODULES, WASM_LAYOUT

_BURST = 10
_PAUSE_S = 0.2


class Programs(ABC):
    """Command lines for the containers of a handler, all in one image."""

    image: ClassVar[str]
    stopped_code: ClassVar[int]
    """With which code `lines` ends when it is asked to."""
    counts_lines: ClassVar[bool]
    """Whether `lines` then says how many there were."""
    has_terminal_size: ClassVar[bool]
    """Whether a program can learn the size of its terminal."""
    sleep: ClassVar[tuple[str, ...]]

    @abstractmethod
    def say(self, out: str, err: str, code: int, pause_s: float = 0) -> tuple[str, ...]:
        """Write a line to each output, with a pause in between, and exit."""

    @abstractmethod
    def cat(self, code: int) -> tuple[str, ...]:
        """Copy the input to the output and exit."""

    @abstractmethod
    def echo(self, code: int) -> tuple[str, ...]:
        """Answer each line with `got <line>`; exit after the line `end`."""

    @abstractmethod
    def lines(self) -> tuple[str, ...]:
        """Write `line <number>` again and again until SIGTERM."""

    @abstractmethod
    def wait(self, path: str, then: str, code: int) -> tuple[str, ...]:
        """Wait for a file, make another and exit."""


class ShellScripts(Programs):
    """What a busybox does."""

    image = BUSYBOX
    stopped_code = 7
    counts_lines = True
    has_terminal_size = True
    sleep = ("sleep", "1000000")

    def say(self, out: str, err: str, code: int, pause_s: float = 0) -> tuple[str, ...]:
        return "sh", "-c", f"echo {out}; sleep {pause_s}; echo {err} >&2; exit {code}"

    def cat(self, code: int) -> tuple[str, ...]:
        return "sh", "-c", f"cat; exit {code}"

    def echo(self, code: int) -> tuple[str, ...]:
        script = f'while read line; do echo "got $line"; [ "$line" != end ] || exit {code}; done'
        return "sh", "-c", script

    def lines(self) -> tuple[str, ...]:
        script = f"""\
trap 'told=yes' TERM
n=0
while [ -z "$told" ]; do
    end=$((n + {_BURST}))
    while [ $n -lt $end ]; do echo line $n; n=$((n + 1)); done
    sleep {_PAUSE_S}
done
echo end $n
exit {self.stopped_code}
"""
        return "sh", "-c", script

    def wait(self, path: str, then: str, code: int) -> tuple[str, ...]:
        return "sh", "-c", f"while [ ! -e {path} ]; do sleep 0.1; done; : > {then}; exit {code}"


class Modules(Programs):
    """What the modules of tests/modules do. None of them can catch a signal, nor ask for a terminal's size."""

    image = MODULES
    stopped_code = 143
    counts_lines = False
    has_terminal_size = False
    sleep = ("/sleeper.wasm",)

    def say(self, out: str, err: str, code: int, pause_s: float = 0) -> tuple[str, ...]:
        return "/say.wasm", out, err, str(code), str(round(pause_s * 1000))

    def cat(self, code: int) -> tuple[str, ...]:
        return "/cat.wasm", str(code)

    def echo(self, code: int) -> tuple[str, ...]:
        return "/echo.wasm", str(code)

    def lines(self) -> tuple[str, ...]:
        return "/lines.wasm", str(_BURST), str(round(_PAUSE_S * 1000)), "0"

    def wait(self, path: str, then: str, code: int) -> tuple[str, ...]:
        return "/files.wasm", "wait", path, then, str(code)


@dataclass(frozen=True, slots=True)
class Handler:
    """One of our handlers: its name in containerd's configuration, its isolation type, and its images."""

    name: str
    type: str
    programs: Programs
    layouts: tuple[Path, ...]
    build: tuple[str, ...] = ()
    """What scripts/build-images has to build besides."""
    has_host_network: bool = True
    """Whether a pod can live in the network of its node."""
    start_patience_s: float = 60.0
    """How long a pod may take to start on a busy machine though the daemon dies now and then."""

    def __str__(self) -> str:
        return self.type

    @property
    def config(self) -> Path:
        return CHECKOUT / f"configs/{self.type}.yaml"

    @property
    def socket(self) -> Path:
        """Where the sandboxer listens, below the root directory of an engine."""
        return Path(f"run/sandboxd/{self.type}.sock")

    @property
    def state_dir(self) -> Path:
        """Where its live state is, below the root directory of an engine."""
        return Path(f"run/sandboxd/{self.type}")


RUNC = Handler("sandboxd", "runc", ShellScripts(), (DEMO_LAYOUT,))
WASM = Handler("sandboxd-wasm", "wasm", Modules(), (DEMO_LAYOUT, WASM_LAYOUT), ("wasm",))
QEMU = Handler(
    "sandboxd-qemu", "qemu", ShellScripts(), (DEMO_LAYOUT,), has_host_network=False, start_patience_s=300.0
)
