"""What this node has and lacks for pods of WebAssembly modules."""

from __future__ import annotations

from common.errors import Unimplemented
from common.linux.seccomp import require_library
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.wasm.config import WasmConfig
from sandboxers.wasm.engines import EngineName, load_engine

_ADVICE = {
    EngineName.WASMTIME: "pip install 'sandboxd[wasm]' into sandboxd's environment",
    EngineName.WASMEDGE: "apt-get install libwasmedge0 (Debian 13 or newer)",
}


async def examine(config: WasmConfig, _: Examination) -> list[Finding]:
    """Look for the engine that runs the modules, and for what makes their system call filters."""
    return [_engine(config.modules.engine), _filters()]


def _engine(name: EngineName) -> Finding:
    subject = "module engine"
    try:
        return Finding(Severity.OK, subject, load_engine(name).key)
    except Unimplemented as error:
        return Finding(Severity.ERROR, subject, str(error), f"{_ADVICE[name]}, or change modules.engine")


def _filters() -> Finding:
    subject = "seccomp"
    try:
        require_library()
    except Unimplemented as error:
        return Finding(Severity.ERROR, subject, str(error), "apt-get install libseccomp2")
    return Finding(Severity.OK, subject, "libseccomp")
