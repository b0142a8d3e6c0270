"""`make bench-qemu-kvm`: tests/bench/qemu.py under KVM, in a node whose processor is emulated and virtualizes.

What it finds tells how the parts relate there; nothing there is as fast as on a machine that is not emulated.
"""

import sys
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.qemu import KERNELS
from tests.bench.report import RESULTS
from tests.engine.parts import prepare
from tests.guest_image import guest_image
from tests.node.template import Node, ready
from vmm.image.manifest import load

FINDINGS = "/run/findings.json"
SILENCE_LIMIT_S = 900


def main() -> int:
    prepare("test", ["fetch-engine"], ["build-images"])
    prepare("guest-kernel")
    images = [load(guest_image("--kernel", kernel)) for kernel in KERNELS]
    with closing(Node(ready())) as node:
        node.bring_engine(images)
        command = ["tests/bench/qemu.py", "--quick", "--output", FINDINGS, *sys.argv[1:]]
        node.run_python(command, in_root_cgroup=True, timeout_s=SILENCE_LIMIT_S)
        findings = node.run("cat", FINDINGS)
    output = RESULTS / time.strftime("bench-qemu-kvm-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(findings)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
