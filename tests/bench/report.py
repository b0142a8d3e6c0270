"""What a benchmark has found: a table with what must be reached, and a JSON file under results/."""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.engine import RECENT_RUNTIMES
from tests.engine.images import CHECKOUT

RESULTS = CHECKOUT / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `reach` is the largest value that passes, None if it only informs."""

    figure: str
    value: float
    unit: str
    reach: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.reach is None:
            return ""
        return "pass" if self.value <= self.reach else "FAIL"


@dataclass(slots=True)
class Report:
    """What one run found."""

    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, figure: str, value: float, unit: str, reach: float | None = None, note: str = "") -> None:
        row = Row(figure, round(value, 4), unit, reach, note)
        self.rows.append(row)
        print(f"  {figure}: {row.value:g} {unit} {row.verdict}", file=sys.stderr, flush=True)


def add_common_arguments(parser: argparse.ArgumentParser, parts: Mapping[str, Any]) -> None:
    """Add what every benchmark can be told."""
    parser.add_argument("--quick", action="store_true", help="little work: a trend, no verdict to quote")
    parser.add_argument("--only", metavar="PART,...", default=",".join(parts), help=f"of {', '.join(parts)}")
    parser.add_argument("--output", type=Path, help="where the JSON goes instead of results/")


def run_parts(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    parts: Mapping[str, Callable[[Report], None]],
    name: str,
) -> int:
    """Run the parts that were asked for, show and keep what they found; 1 if something is not reached."""
    chosen = arguments.only.split(",")
    unknown = [part for part in chosen if part not in parts]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    report = Report(details={"machine": machine(), "quick": arguments.quick})
    for part in chosen:
        print(part, file=sys.stderr, flush=True)
        parts[part](report)

    output = arguments.output or RESULTS / time.strftime(f"{name}-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(row), "verdict": row.verdict} for row in report.rows]
    output.write_text(json.dumps({"rows": rows, **report.details}, indent=1) + "\n")
    print(table(report.rows))
    print(f"\n{output}")
    return 1 if any(row.verdict == "FAIL" for row in report.rows) else 0


def table(rows: Sequence[Row]) -> str:
    """The findings for people: what was measured, what must be reached, whether it is."""
    width = max(len(row.figure) for row in rows)
    lines = [f"{'figure':<{width}}  {'measured':>12}  {'reach':>8}  verdict"]
    for row in rows:
        reach = "" if row.reach is None else f"<= {row.reach:g}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{row.figure:<{width}}  {row.value:>9.4g} {row.unit:<3}  {reach:>7}  {row.verdict}{note}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on."""

    def first_line(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return next(iter(done.stdout.splitlines()), "")

    return {
        "kernel": platform.release(),
        "cpus": len(
            [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")]
        ),
        "python": platform.python_version(),
        "load": Path("/proc/loadavg").read_text().split()[0],
        "crun": first_line(str(RECENT_RUNTIMES / "crun"), "--version"),
        "runc": first_line("runc", "--version"),
        "commit": first_line("git", "-C", str(CHECKOUT), "rev-parse", "--short", "HEAD"),
    }
