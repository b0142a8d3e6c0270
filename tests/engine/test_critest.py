"""The CRI conformance suite, unmodified, through our handler."""

import pytest

from tests.engine.critest import RESULTS, conformance_engine, run
from tests.engine.engine import OURS
from tests.engine.parts import prepare

# 113 specs without the one that needs content from the network, without five benchmarks, and without nine
# about AppArmor where the kernel has none.
EXPECTED_PASSES = 98


@pytest.mark.timeout(1800)
def test_critest_passes_what_it_passes_with_stock_shims(parts: None) -> None:
    try:
        prepare("test", ["build-images", "critest"])
    except RuntimeError as error:
        pytest.skip(str(error))
    with conformance_engine(OURS) as engine:
        found = run(engine, OURS)
        logs = engine.evidence()
    found.save(RESULTS / f"critest-{OURS}.json")
    (RESULTS / f"critest-{OURS}.log").write_text(f"{found.output}\n{logs}\n")
    assert not found.failed, "\n".join([*found.failed, found.output[-8000:]])
    assert len(found.passed) >= EXPECTED_PASSES, f"passed {len(found.passed)}, skipped {found.skipped}"
