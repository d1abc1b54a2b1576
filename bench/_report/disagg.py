"""The report of `baton bench disagg`: goodput of each side and mix, where the better side changes, and the storm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._report import page, svg

MARGIN = 1.05  # two sides within this factor count as equal
Report = dict[str, Any]


def text(report: Report) -> str:
    """Return the tables and the advice."""
    names = list(report["sides"])
    lines = [report["machine"], report["command"], "", "goodput, requests/s within both limits"]
    lines.append(f"{'prompt:output':<16}{'req/s':>8}" + "".join(f"{name:>12}" for name in names) + "   better")
    for runs in _aligned(report):
        good = [run["goodput_per_s"] for run in runs]
        cells = "".join(f"{value:>12.2f}" for value in good)
        lines.append(f"{_mix(runs[0]):<16}{runs[0]['rate']:>8.2f}{cells}   {better(names, good)}")
    lines += ["", "TPOT p99 of streams, ms (best round): alone, beside long prompts, ratio"]
    for name in names:
        best = calmest(report["sides"][name]["storms"])
        lines.append(f"{name:<16}{best['idle_s'] * 1000:>8.1f}{best['storm_s'] * 1000:>12.1f}{best['ratio']:>12.2f}")
    return "\n".join([*lines, "", *advice(report)])


def advice(report: Report) -> list[str]:
    """Return which side to run for each mix, by peak goodput, and where that changes."""
    names, best = list(report["sides"]), _peaks(report)
    lines, last = [], ""
    for mix, peaks in best.items():
        side = better(names, peaks)
        crossed = f"; the crossover lies between this mix and the one before ({last})" if last not in ("", side) else ""
        shown = ", ".join(f"{name} {peak:.2f}" for name, peak in zip(names, peaks, strict=True))
        lines.append(f"{mix}: run {side} (peak goodput: {shown}){crossed}")
        last = side
    return lines


def better(names: Sequence[str], values: Sequence[float]) -> str:
    """Return the name with the highest value, or `either` if the next one is within 5 %."""
    ranked = sorted(zip(values, names, strict=True), reverse=True)
    return ranked[0][1] if ranked[0][0] > MARGIN * ranked[1][0] else "either"


def calmest(storms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the round that was least disturbed by other work on the machine."""
    return min(storms, key=lambda storm: storm["storm_s"])


def write_html(path: Path, report: Report) -> None:
    """Write a page with goodput over rate for each mix, the storm, and the advice."""
    names = list(report["sides"])
    boxes = [page.card("Advice", page.table(["", ""], [[line, ""] for line in advice(report)]), wide=True)]
    for mix in _peaks(report):
        series = []
        for name in names:
            runs = [run for run in report["sides"][name]["runs"] if _mix(run) == mix]
            rates, good = [run["rate"] for run in runs], [run["goodput_per_s"] for run in runs]
            series.append(svg.Line(name, rates, good, dots=True))
        boxes.append(page.card(f"Goodput, {mix} tokens", svg.lines(series, "requests/s asked", "good requests/s")))
    storms = [calmest(report["sides"][name]["storms"]) for name in names]
    groups = [
        (title, [1000 * storm[key] for storm in storms]) for title, key in (("alone", "idle_s"), ("storm", "storm_s"))
    ]
    boxes.append(page.card("TPOT p99 of streams beside long prompts", svg.bars(names, groups, "ms")))
    page.write(path, "Split or colocated", [report["machine"], report["command"]], page.cards(boxes))


def _aligned(report: Report) -> list[tuple[dict[str, Any], ...]]:
    return list(zip(*(side["runs"] for side in report["sides"].values()), strict=True))


def _peaks(report: Report) -> dict[str, list[float]]:
    """Return the peak goodput of each side, by mix."""
    best: dict[str, list[float]] = {}
    for runs in _aligned(report):
        peaks = best.setdefault(_mix(runs[0]), [0.0] * len(runs))
        best[_mix(runs[0])] = [max(pair) for pair in zip(peaks, (run["goodput_per_s"] for run in runs), strict=True)]
    return best


def _mix(run: dict[str, Any]) -> str:
    return f"{run['prompt_tokens']}:{run['output_tokens']}"
