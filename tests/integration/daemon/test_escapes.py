"""Known ways out of a container, by the classes of runtime vulnerabilities that they belong to.

Elsewhere: working directories below /proc and leaked descriptors (CVE-2024-21626) in test_bad_input.py and
test_stdio.py, namespaces of strangers in test_bad_input.py, replaced FIFOs in test_stdio.py.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from common.ttrpc import StatusError
from tests.integration.daemon.client import Pod
from tests.integration.daemon.lab import IMAGE, Lab


async def test_the_runtime_cannot_be_overwritten_through_proc_self_exe_cve_2019_5736(
    pod: Pod, lab: Lab
) -> None:
    runtime = Path(shutil.which("crun") or "/usr/bin/crun")
    before = runtime.read_bytes()
    script = (
        "printf '#!/proc/self/exe\\n' >/tmp/trap; chmod +x /tmp/trap; echo ready; "
        "while :; do for exe in /proc/[0-9]*/exe; do echo owned >$exe; done; done 2>/dev/null"
    )
    container = await pod.running("sh", "-c", script)
    await container.stdout.until(b"ready")
    for _ in range(5):
        for command in ("/tmp/trap", "/proc/self/exe"):
            process = await container.exec(command)
            # Whether it is refused, ends by itself or has to be killed does not matter.
            with contextlib.suppress(StatusError):
                await process.start()
                await process.kill(9)
    assert runtime.read_bytes() == before


@pytest.mark.parametrize("link", ["etc", "etc/hosts", "dev", "proc", "sys"])
async def test_links_in_an_image_lead_nowhere_outside_of_it_cve_2021_30465(
    pod: Pod, lab: Lab, link: str
) -> None:
    container = pod.container("true")
    image, victim = lab.path(f"{container.directory}/image"), f"{container.directory}/victim"
    (image / "bin").mkdir(parents=True)
    shutil.copy2(lab.path(f"{IMAGE}/bin/busybox"), image / "bin/true")
    lab.path(victim).mkdir()
    (lab.path(victim) / "precious").write_text("untouched")
    (image / link).parent.mkdir(exist_ok=True)
    target = f"{victim}/precious" if "/" in link else victim
    (image / link).symlink_to("../" * 20 + target.lstrip("/"))
    mount = {"type": "bind", "source": f"{container.directory}/image", "options": ["rbind", "rw"]}
    before = lab.inventory().mounts
    # A runtime may also refuse such an image.
    with contextlib.suppress(StatusError):
        await container.create(rootfs=[mount])
        await container.start()
        await container.wait()
    more = lab.inventory().mounts - before - {f"{container.bundle}/rootfs"}
    assert not more
    assert [file.name for file in lab.path(victim).iterdir()] == ["precious"]
    assert (lab.path(victim) / "precious").read_text() == "untouched"
