"""What doctor tells of the engines and of filters."""

from __future__ import annotations

import pytest

from common.linux import seccomp
from sandboxers.doctor import Examination, Finding, Severity
from sandboxers.wasm.config import ModulesConfig, WasmConfig
from sandboxers.wasm.doctor import examine
from sandboxers.wasm.engines import EngineName, libwasmtime


async def findings(engine: EngineName = EngineName.WASMTIME) -> dict[str, Finding]:
    async with Examination() as examination:
        config = WasmConfig(modules=ModulesConfig(engine=engine))
        return {finding.subject: finding for finding in await examine(config, examination)}


async def test_an_engine_is_named_with_its_version() -> None:
    found = (await findings())["module engine"]
    assert found.severity is Severity.OK
    assert found.found.startswith("wasmtime-")


async def test_an_engine_that_is_missing_is_an_error_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_found() -> str:
        raise ImportError("no module named 'wasmtime'")

    monkeypatch.setattr(libwasmtime, "_package_directory", not_found)
    found = (await findings())["module engine"]
    assert found.severity is Severity.ERROR
    assert "wasmtime" in found.found
    assert "sandboxd[wasm]" in found.advice


async def test_filters_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await findings())["seccomp"].severity is Severity.OK
    monkeypatch.setattr(seccomp, "_LIBRARY", "libnonesuch.so.9")
    found = (await findings())["seccomp"]
    assert (found.severity, found.advice) == (Severity.ERROR, "apt-get install libseccomp2")
