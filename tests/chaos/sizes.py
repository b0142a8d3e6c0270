"""How much the trials do: little in CI, all that was promised with CHAOS=full (`make chaos`)."""

import os
import random
from dataclasses import dataclass

from tests.engine.handlers import RUNC, WASM


@dataclass(frozen=True, slots=True)
class Sizes:
    """One row per trial; `failpoint_passes` are the passes of a failpoint at which the daemon is killed."""

    failpoint_passes: tuple[int, ...]
    kills: int
    kill_pods: int
    exits: int
    restart_pods: int
    vm_kills: int
    vm_kill_pods: int


FULL = os.environ.get("CHAOS", "") == "full"
SIZES = (
    Sizes(
        failpoint_passes=(1, 2, 3),
        kills=200,
        kill_pods=20,
        exits=20,
        restart_pods=200,
        vm_kills=50,
        vm_kill_pods=4,
    )
    if FULL
    else Sizes(
        failpoint_passes=(1,), kills=10, kill_pods=5, exits=20, restart_pods=20, vm_kills=6, vm_kill_pods=2
    )
)

# Kernel features to do without: before 6.15 there is no PIDFD_GET_INFO that tells exit codes.
WITHOUT = ("", "pidfd-info")
WITHOUT_IDS = ("with all that the kernel has", "without PIDFD_GET_INFO")

# Where what outlasts a daemon differs between the isolation types, a trial is made with each.
HANDLERS = (RUNC, WASM)
SHARED = [(handler, without) for handler in HANDLERS for without in (WITHOUT if FULL else WITHOUT[:1])]
SHARED_IDS = [
    f"{handler} {condition}"
    for handler in HANDLERS
    for condition in (WITHOUT_IDS if FULL else WITHOUT_IDS[:1])
]

# Who keeps the descriptors: our supervisor, or a manager like systemd, where pidfds alone tell exit codes.
SUPERVISOR, MANAGER = "supervisor", "manager"
KEEPERS = (SUPERVISOR, MANAGER)

# The ways in which a daemon learns exit codes of which it was not there to be told.
WAYS = (*((SUPERVISOR, without) for without in WITHOUT), (MANAGER, ""))
WAYS_IDS = (*WITHOUT_IDS, "by pidfds alone")


def way_name(trial: str, keeper: str, without: str) -> str:
    """Return the name under which the figures of a trial are kept."""
    return "-".join(
        [trial, *(["pidfds-alone"] if keeper == MANAGER else []), *(["without", without] if without else [])]
    )


# A run that has failed is repeated with the seed that it has printed.
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
