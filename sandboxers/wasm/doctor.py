"""What this node has and lacks for pods of WebAssembly modules."""

from __future__ import annotations

from common.errors import Unimplemented
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.wasm.config import WasmConfig
from sandboxers.wasm.engines import load_engine

_SUBJECT = "module engine"


async def examine(config: WasmConfig, examination: Examination) -> list[Finding]:
    """Look for the engine that runs the modules."""
    try:
        engine = load_engine(config.modules.engine)
    except Unimplemented as error:
        advice = "pip install 'sandboxd[wasm]' into sandboxd's environment, or name another one in modules.engine"
        return [Finding(Severity.ERROR, _SUBJECT, str(error), advice)]
    return [Finding(Severity.OK, _SUBJECT, engine.key)]
