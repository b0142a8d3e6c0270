"""Run the unmodified CRI conformance suite through one handler: `python -m tests.engine.critest HANDLER`."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tests.engine.engine import OURS, OURS_IN_QEMU, Engine
from tests.engine.images import CHECKOUT, CRITEST_LAYOUT, DEMO_LAYOUT
from tests.engine.parts import prepare
from tests.engine.qemu import write_config

CRITEST = CHECKOUT / ".cache/bin/critest"
RESULTS = CHECKOUT / "results"
# It pulls content of a given digest, which exists only online.
LEFT_OUT = "image with digest"
TIMEOUT_S = 2400


@dataclass(frozen=True, slots=True)
class Conformance:
    """What the suite found: its specs by outcome, and its output."""

    passed: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    output: str

    def save(self, path: Path) -> None:
        """Write the list of results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = {name: len(getattr(self, name)) for name in ("passed", "failed", "skipped")}
        lists = {"failed": self.failed, "skipped": self.skipped, "passed": self.passed}
        path.write_text(json.dumps({"counts": counts, **lists}, indent=1) + "\n")


def run(engine: Engine, handler: str, focus: str = "") -> Conformance:
    """Run the suite inside an engine whose images are served; `focus` limits it to the specs that match."""
    report = engine.directory / "critest.xml"
    # fmt: off
    command = [
        str(CRITEST),
        "--runtime-endpoint", "unix:///run/containerd/containerd.sock",
        "--runtime-handler", handler,
        "--ginkgo.junit-report", str(report),
        "--ginkgo.skip", LEFT_OUT,
        "--ginkgo.no-color",
    ]
    # fmt: on
    if focus:
        command += ["--ginkgo.focus", focus]
    ended = engine.namespaces.run(
        command,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=TIMEOUT_S,
    )
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        kind, _, name = case.get("name", "").partition("] ")
        if kind == "[It" and LEFT_OUT not in name:
            status = case.get("status", "")
            outcomes[status if status in ("passed", "skipped") else "failed"].append(name)
    if not outcomes["passed"] and not outcomes["failed"]:
        raise RuntimeError(f"critest ended with {ended.returncode} and ran nothing:\n{ended.stdout[-4000:]}")
    passed, failed, skipped = (tuple(sorted(outcomes[name])) for name in ("passed", "failed", "skipped"))
    return Conformance(passed, failed, skipped, ended.stdout)


def conformance_engine(handler: str) -> Engine:
    """An engine in which the suite can run; the caller closes it."""
    engine = Engine(default_handler=handler)
    try:
        engine.serve_images([CRITEST_LAYOUT])
        engine.start([DEMO_LAYOUT])
        if handler == OURS:
            engine.start_sandboxer()
        elif handler == OURS_IN_QEMU:
            engine.start_sandboxer(write_config(engine.directory))
    except BaseException:
        engine.close()
        raise
    return engine


def main() -> int:
    handler, focus = (*sys.argv[1:], "", "")[:2]
    handler = handler or OURS
    prepare("test", ["fetch-runtimes"], ["build-images", "critest"])
    with conformance_engine(handler) as engine:
        found = run(engine, handler, focus)
        logs = engine.evidence()
    found.save(RESULTS / f"critest-{handler}.json")
    (RESULTS / f"critest-{handler}.log").write_text(f"{found.output}\n{logs}\n")
    for name in found.failed:
        print(f"failed: {name}")
    print(f"{len(found.passed)} passed, {len(found.failed)} failed, {len(found.skipped)} skipped")
    print(f"list: {RESULTS / f'critest-{handler}.json'}")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
