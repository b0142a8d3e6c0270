"""Programs that outlive the daemon: in a network namespace and in cgroups, and not before they are on record.

A program is started in two steps. `hold` makes its process, which waits; the daemon writes the pid down; `release`
lets it become the program, with the same pid. If the daemon dies in between the process ends by itself, so whatever
runs is on record. What it does before the program (cgroups, namespace, capabilities) needs no fork and no code of
ours in the child.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from common.linux.pidfd import start_time
from common.process.exits import ExitWatcher
from common.process.spawn import Child, spawn

# Waits for a line, fails at the end of its input: the daemon is no more. Then joins each cgroup named before `--`, and
# is as killable when memory runs out as any pod: the daemon may be spared, which its children inherit.
_SCRIPT = """\
read -r line
exec </dev/null
echo 0 2>/dev/null >/proc/self/oom_score_adj || :
while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Where a program runs. `cgroups` are directories with a `cgroup.procs`; an empty `netns_path` is the daemon's own.

    Without `capabilities` it has none even as root, and no program that it might execute gets any.
    """

    netns_path: str = ""
    cgroups: tuple[str, ...] = ()
    capabilities: bool = False

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that enters all this and then becomes the program."""
        words = ["/bin/sh", "-euc", _SCRIPT, "sh", *self.cgroups, "--"]
        if self.netns_path:
            words += ["nsenter", f"--net={self.netns_path}", "--"]
        if not self.capabilities:
            words += ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]
        return [*words, *argv]


class Held:
    """A process that waits to become its program. It ends when neither `release` is called nor this process lives."""

    __slots__ = ("_gate", "child", "start_time")

    def __init__(self, child: Child, gate: int) -> None:
        self.child = child
        # In clock ticks since boot: with the pid an identity, which becoming the program does not change.
        self.start_time = start_time(child.pid)
        self._gate = gate

    def release(self) -> None:
        """Let it become the program; harmless when it has ended."""
        try:
            os.write(self._gate, b"\n")
        except BrokenPipeError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Give up: what was not released ends by itself."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1


def hold(
    argv: Sequence[str],
    *,
    watcher: ExitWatcher,
    confinement: Confinement,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Held:
    """Make the process of a program and let it wait; descriptors are the caller's and may be closed after this.

    What fails later (no such program, a namespace or cgroup that is gone) ends it with words on its stderr. Raises
    what `spawn` raises.
    """
    waiting, gate = os.pipe2(os.O_CLOEXEC)
    try:
        child = spawn(
            confinement.command(argv),
            watcher=watcher,
            stdin=waiting,
            stdout=stderr,
            stderr=stderr,
            pass_fds=pass_fds,
        )
        return Held(child, gate)
    except BaseException:
        os.close(gate)
        raise
    finally:
        os.close(waiting)
