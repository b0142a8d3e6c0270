"""Figures of the trials at full size: results/chaos-<trial>.json, and a table of them (`make chaos`)."""

import json
import sys
import time
from typing import Any

from tests.chaos.sizes import FULL
from tests.engine.images import CHECKOUT

RESULTS = CHECKOUT / "results"


def record(trial: str, reach: float | None = None, **figures: Any) -> None:
    """Print what a trial has found; a run at full size also keeps it.

    With `reach`, the first figure must not be larger than that; the table says whether it is.
    """
    print(f"{trial}: {json.dumps(figures)}")
    if FULL:
        RESULTS.mkdir(exist_ok=True)
        found = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "reach": reach, "figures": figures}
        (RESULTS / f"chaos-{trial}.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    """Print the latest figures of all trials; 1 if one is larger than it may be."""
    failed = False
    for path in sorted(RESULTS.glob("chaos-*.json")):
        found = json.loads(path.read_text())
        figures, verdict = found["figures"], ""
        if found["reach"] is not None:
            passed = next(iter(figures.values())) <= found["reach"]
            verdict = f"<= {found['reach']:g}: {'pass' if passed else 'FAIL'}"
            failed |= not passed
        texts = (f"{name} {json.dumps(value)}" for name, value in figures.items())
        print(f"{path.stem.removeprefix('chaos-'):<28} {'  '.join(texts)}  {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
