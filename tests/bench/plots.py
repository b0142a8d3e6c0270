"""`make plots`: draw what the benchmarks have found last, from results/*.json into docs/plots/*.svg."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib import pyplot, rcParams, ticker

from tests.bench.report import RESULTS
from tests.engine import handlers
from tests.engine.engine import OURS, STOCK_CRUN, STOCK_RUNC
from tests.engine.images import CHECKOUT

# The same results give the same bytes, and text stays text.
rcParams.update({"svg.hashsalt": "sandboxd", "svg.fonttype": "none", "font.size": 9})

PLOTS = CHECKOUT / "docs/plots"


class Line(NamedTuple):
    """How one contestant is drawn, the same in every plot."""

    label: str
    color: str


STYLES = {
    STOCK_RUNC: Line("stock shim, runc", "#c44e52"),
    STOCK_CRUN: Line("stock shim, crun", "#dd8452"),
    OURS: Line("sandboxd", "#4c72b0"),
    handlers.WASM.name: Line("sandboxd, wasm", "#55a868"),
    "ours": Line("sandboxd", "#55a868"),
    "command in a container": Line("its command, a container each", "#c44e52"),
    "command alone": Line("its command, no container", "#8c8c8c"),
}


def newest(name: str) -> dict[str, Any]:
    """Return the last result of a benchmark. Raises FileNotFoundError if there is none."""
    found = sorted(RESULTS.glob(f"{name}-[0-9]*.json"))
    if not found:
        raise FileNotFoundError(f"no results/{name}-*.json: run `make {name}` first")
    result: dict[str, Any] = json.loads(found[-1].read_text())
    return result


def draw_distributions(axes: Any, samples: Mapping[str, Sequence[float]], title: str) -> None:
    """Draw for each contestant which share of its starts took at most how many milliseconds."""
    for name, values_ms in samples.items():
        ordered = sorted(values_ms)
        shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axes.step(
            [0, *ordered], [0, *shares], where="post", label=STYLES[name].label, color=STYLES[name].color
        )
    axes.set(title=title, xlabel="ms", ylabel="share of starts", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def draw_starts(result: Mapping[str, Any]) -> Any:
    """Pods with one container, one after the other."""
    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    total = {name: part["values"] for name, part in result["serial_ms"]["total"].items()}
    draw_distributions(axes, total, "Start of a pod with one container, through the CRI")
    return figure


def draw_memory(result: Mapping[str, Any]) -> Any:
    """What manages pods, over their number."""
    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    for name, points in result["memory_over_pods_kib"].items():
        counts, sizes_kib = zip(*points, strict=True)
        sizes_mib = [size / 1024 for size in sizes_kib]
        axes.plot(counts, sizes_mib, marker="o", label=STYLES[name].label, color=STYLES[name].color)
    axes.set(
        title="Memory of what manages pods", xlabel="pods", ylabel="MiB (PSS)", xscale="log", yscale="log"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_modules(result: Mapping[str, Any]) -> Any:
    """Pods of modules against stock pods, and containers of modules against the engine's own command."""
    figure, (pods, containers) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    total = {name: part["values"] for name, part in result["pods_ms"]["total"].items()}
    draw_distributions(pods, total, "Start of a pod, through the CRI")
    kinds = {name.partition(", ")[2]: values for name, values in result["commands_wasmtime_ms"].items()
             if name.startswith("cached, ")}  # fmt: skip
    draw_distributions(containers, kinds, "A compiled module to its first line, wasmtime")
    return figure


DRAWINGS = {
    "start": ("bench", draw_starts),
    "memory": ("bench", draw_memory),
    "wasm": ("bench-wasm", draw_modules),
}


def main() -> int:
    """Draw the plots that are named, or all; 1 if the results for one are not there."""
    parser = argparse.ArgumentParser(description="Draw what the benchmarks have found last.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRAWINGS)} (default: all)")
    names = parser.parse_args().names or list(DRAWINGS)
    if unknown := set(names) - DRAWINGS.keys():
        parser.error(f"no plot {', '.join(sorted(unknown))}; there are {', '.join(DRAWINGS)}")
    PLOTS.mkdir(exist_ok=True)
    status = 0
    for name in names:
        benchmark, draw = DRAWINGS[name]
        try:
            result = newest(benchmark)
            figure = draw(result)
        except (FileNotFoundError, KeyError) as error:
            print(f"{name}.svg: not drawn: {error}", file=sys.stderr)
            status = 1
            continue
        machine = result["machine"]
        figure.text(
            0.99, 0.01, f"{machine['cpus']} processors, Linux {machine['kernel']}, commit {machine['commit']}",
            ha="right", fontsize=6, color="#666666",
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path = PLOTS / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        pyplot.close(figure)
        print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
