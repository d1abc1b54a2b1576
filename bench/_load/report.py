"""The report of `baton bench serve`: a table for the terminal, and an HTML page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._load.figures import LATENCIES, PERCENTS
from bench._report import page, svg

Run = dict[str, Any]
_MUCH_WAITING = 0.1  # share of the time; the client then sees tokens late, and several at once
_SHOWN = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "itl_p50_s", "itl_p99_s", "e2e_p50_s")


def text(report: dict[str, Any]) -> str:
    """Return the table, in milliseconds; ratios are relative to the first line."""
    lines = [
        report["machine"],
        report["command"],
        "",
        "   load    tok/s ratio    req/s  goodput  TTFT p50      p99  TPOT p50     p99  ITL p50     p99  E2E p50 fail",
    ]
    base = report["runs"][0]["output_tokens_per_s"] or math.nan
    for run in report["runs"]:
        ms = "".join(_milliseconds(run[name]).rjust(10 if i % 2 == 0 else 9) for i, name in enumerate(_SHOWN))
        rate = run["output_tokens_per_s"]
        lines.append(
            f"{run['name']:>7} {rate:>8.1f} {rate / base:>5.2f} {run['requests_per_s']:>8.2f} "
            f"{run['goodput_per_s']:>8.2f}{ms} {run['failed']:>6}"
        )
        lines += _notes(run)
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if math.isfinite(seconds) else "–"


def _notes(run: Run) -> list[str]:
    notes = []
    if run["phases_s"]:
        split = ", ".join(f"{name} {value * 1000:.1f}" for name, value in run["phases_s"].items())
        notes.append(f"TTFT is {split} (means)")
    if run["without_tpot"]:
        number = run["requests"] - run["failed"]
        notes.append(f"TPOT leaves out {run['without_tpot']} of {number} requests: fewer than two tokens with text")
    notes.append(
        f"client: {run['client_cpu_s'] / run['elapsed_s']:.1%} of a core, {run['late_s'] * 1000:.0f} ms late at most"
    )
    if (share := run["client_waited_s"] / run["elapsed_s"]) > _MUCH_WAITING:
        notes.append(
            f"the client waited for a core {share:.0%} of the time: TTFT is too long, TPOT and ITL p50 are too short"
        )
    if run["errors"]:
        counted = ", ".join(f"{number} × {code}" for code, number in run["errors"].items())
        notes.append(f"errors: {counted}; the first: {run['error']}")
    return [f"        {note}" for note in notes]


def write_html(path: Path, report: dict[str, Any]) -> None:
    """Write the page: figures of the fastest run, curves over all runs, a table, and each run over time."""
    runs: Sequence[Run] = report["runs"]
    best = max(runs, key=lambda run: float(run["output_tokens_per_s"]))
    body = page.tiles(
        [
            (f"{best['output_tokens_per_s']:,.0f}", f"output tokens/s at {best['name']}"),
            (f"{best['goodput_per_s']:.1f}/s", f"good requests, {best['good_share']:.0%} of all"),
            (_ms(best["ttft_p50_s"]), "TTFT p50"),
            (_ms(best["ttft_p99_s"]), "TTFT p99"),
            (_ms(best["tpot_p50_s"]), "TPOT p50"),
            (str(sum(run["failed"] for run in runs)), "failed requests"),
        ]
    )
    boxes = [page.card("All runs", _table(runs), wide=True), *(_curves(runs) if len(runs) > 1 else ())]
    limit_ms = report["slo_ttft_s"] * 1000 or None
    boxes += [box for run in runs for box in over_time(run["name"], run["timeline"], limit_ms)]
    page.write(path, f"Load on {report['model']}", [report["machine"], report["command"]], body + page.cards(boxes))


def _table(runs: Sequence[Run]) -> str:
    head = [
        "load",
        "tok/s",
        "req/s",
        "goodput/s",
        *(f"{n.upper()} p{p}" for n in LATENCIES for p in PERCENTS),
        "failed",
    ]
    rows = []
    for run in runs:
        latencies = [_ms(run[f"{name}_p{percent}_s"]) for name in LATENCIES for percent in PERCENTS]
        rates = [f"{run[name]:.1f}" for name in ("output_tokens_per_s", "requests_per_s", "goodput_per_s")]
        errors = ", ".join(f"{number} × {code}" for code, number in run["errors"].items())
        rows.append([run["name"], *rates, *latencies, errors or "0"])
    across = list(zip(head, *rows, strict=True))  # one column per run, because a row of all figures would be too wide
    return page.table(across[0], across[1:])


def _curves(runs: Sequence[Run]) -> list[str]:
    rates = [run["output_tokens_per_s"] for run in runs]
    names = [run["name"] for run in runs]
    return [
        page.card("Throughput", svg.bars(names, [("output tokens/s", rates)], "tokens/s")),
        page.card("Requests and good requests", svg.bars(names, _goodput(runs), "per second")),
        page.card("TTFT over throughput", over_throughput(runs, "ttft")),
        page.card("TPOT over throughput", over_throughput(runs, "tpot")),
    ]


def _goodput(runs: Sequence[Run]) -> list[tuple[str, list[float]]]:
    names = {"requests_per_s": "all", "goodput_per_s": "within the limits"}
    return [(name, [run[key] for run in runs]) for key, name in names.items()]


def over_throughput(runs: Sequence[Run], latency: str) -> str:
    """Plot percentiles of TTFT or TPOT over throughput."""
    rates = [run["output_tokens_per_s"] for run in runs]
    drawn = [svg.Line(f"p{p}", rates, [1000 * run[f"{latency}_p{p}_s"] for run in runs], dots=True) for p in (50, 99)]
    return svg.lines(drawn, "output tokens/s", "ms")


def over_time(
    name: str, over: dict[str, list[float]], limit_ms: float | None = None, marks_s: Sequence[float] = ()
) -> list[str]:
    """Return cards with throughput and TTFT over time, from a timeline of `figures`."""
    rate = [svg.Line("output events/s", over["at_s"], over["events_per_s"])]
    ttft = [svg.Line("TTFT p50", over["at_s"], [1000 * value for value in over["ttft_p50_s"]], dots=True)]
    return [
        page.card(f"{name}: throughput over time", svg.lines(rate, "s", "events/s", marks=marks_s)),
        page.card(f"{name}: TTFT over time", svg.lines(ttft, "s", "ms", limit_ms, marks_s)),
    ]


def _ms(seconds: float) -> str:
    """Format with three digits."""
    if not math.isfinite(seconds):
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1000 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"
