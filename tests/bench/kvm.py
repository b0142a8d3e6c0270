"""`make bench-qemu-kvm`: tests/bench/qemu.py under KVM, in nodes whose processor is emulated and virtualizes.

What it finds tells how the parts relate there; nothing there is as fast as on a machine that is not emulated.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.qemu import KERNELS, PARTS
from tests.bench.report import RESULTS, Row, add_common_arguments, table
from tests.engine.parts import prepare
from tests.guest_image import guest_image
from tests.node.template import Node, ready
from vmm.image.manifest import GuestImage, load

FINDINGS = "/run/findings.json"
SILENCE_LIMIT_S = 900
# Emulated virtualization loses a guest now and then, and what is measured with it.
ATTEMPTS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure pods in virtual machines under KVM.")
    add_common_arguments(parser, PARTS)
    arguments = parser.parse_args()
    prepare("test", ["fetch-engine"], ["build-images"])
    prepare("guest-kernel")
    images = [load(guest_image("--kernel", kernel)) for kernel in KERNELS]
    parts = [findings(images, *of) for of in itertools.product(arguments.only.split(","), KERNELS)]
    rows = [_row(row) for part in parts for row in part.pop("rows")]
    print(table(rows))
    output = arguments.output or RESULTS / time.strftime("bench-qemu-kvm-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"rows": [asdict(row) for row in rows], "parts": parts}, indent=1) + "\n")
    print(f"\n{output}")
    return 0


def findings(images: Sequence[GuestImage], part: str, kernel: str) -> dict[str, Any]:
    """Return what one part finds with one kernel, in a node of its own, which is another one when it fails."""
    command = ["tests/bench/qemu.py", "--quick", "--only", part, "--kernels", kernel, "--output", FINDINGS]
    for left in reversed(range(ATTEMPTS)):
        with closing(Node(ready())) as node:
            node.bring_engine(images)
            try:
                node.run_python(command, in_root_cgroup=True, timeout_s=SILENCE_LIMIT_S)
                found: dict[str, Any] = json.loads(node.run("cat", FINDINGS))
                break
            except RuntimeError as error:
                if not left:
                    raise
                print(f"measured again: {error}", file=sys.stderr, flush=True)
    return found


def _row(found: dict[str, Any]) -> Row:
    # Without a verdict: what must be reached must be so elsewhere.
    return Row(found["figure"], found["value"], found["unit"])


if __name__ == "__main__":
    sys.exit(main())
