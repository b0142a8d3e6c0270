"""What this node has and lacks for pods in virtual machines."""

from __future__ import annotations

from common.errors import SandboxdError
from sandboxers.doctor import Finding, Severity
from sandboxers.vm.boot import image_boot
from vmm.hypervisors.hypervisor import Hypervisor
from vmm.hypervisors.machine import BootConfig
from vmm.image.manifest import load


async def examine_machines(image_path: str, hypervisor: Hypervisor) -> list[Finding]:
    """Look for what the hypervisor needs on this host, and for the guest image, whose files are read and compared."""
    boot = BootConfig(kernel="", root_image="")
    try:
        image = load(image_path)
        image.verify()
        boot = image_boot(image)
        await hypervisor.prepare(boot.kernel)
        findings = [Finding(Severity.OK, "guest image", image_path)]
    except SandboxdError as error:
        findings = [Finding(Severity.ERROR, "guest image", "none that can be used", str(error))]
    for each in await hypervisor.prerequisites(boot):
        if each.found:
            findings.append(Finding(Severity.OK, each.name, each.found))
        else:
            severity = Severity.NOTE if each.is_met else Severity.ERROR
            findings.append(Finding(severity, each.name, "not there", each.remedy))
    return findings
