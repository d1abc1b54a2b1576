"""How `baton loadtest` tells what it found: lines for the terminal, a page to keep."""

from collections.abc import Sequence
from pathlib import Path

from bench._report import page, svg
from fleet.loadtest.phases import Verdict


def line(verdict: Verdict) -> str:
    """A phase, and each thing that had to hold."""
    head = f"{verdict.name:<10} {_word(verdict.passed)}"
    return "\n".join([head, *(f"  {'✓' if check.passed else '✗'} {check.text}" for check in verdict.checks)])


def summary(verdicts: Sequence[Verdict]) -> str:
    """The last line."""
    failed = [verdict.name for verdict in verdicts if not verdict.passed]
    return f"FAIL: {', '.join(failed)}" if failed else f"pass: all of {', '.join(v.name for v in verdicts)}"


def write_html(path: Path, verdicts: Sequence[Verdict], notes: Sequence[str]) -> None:
    """A table of verdicts, then drawings of each phase."""
    rows = [[verdict.name, _word(check.passed), check.text] for verdict in verdicts for check in verdict.checks]
    boxes = [page.card("Verdicts", page.table(["phase", "verdict", "what"], rows), wide=True)]
    for verdict in verdicts:
        boxes += _curve(verdict) + _over_time(verdict) + _memory(verdict)
    page.write(path, f"Load test: {'pass' if all(v.passed for v in verdicts) else 'FAIL'}", notes, page.cards(boxes))


def _curve(verdict: Verdict) -> list[str]:
    if not verdict.curve:
        return []
    rates = [found["output_tokens_per_s"] for found in verdict.curve]
    ttft = [svg.Line(f"p{p}", rates, [1000 * f[f"ttft_p{p}_s"] for f in verdict.curve], dots=True) for p in (50, 99)]
    levels = [str(found["concurrency"]) for found in verdict.curve]
    return [
        page.card(
            f"{verdict.name}: throughput by concurrency", svg.bars(levels, [("output tokens/s", rates)], "tokens/s")
        ),
        page.card(f"{verdict.name}: TTFT over throughput", svg.lines(ttft, "output tokens/s", "ms")),
    ]


def _over_time(verdict: Verdict) -> list[str]:
    over = verdict.timeline
    if not over:
        return []
    rate = [svg.Line("output events/s", over["at_s"], over["events_per_s"])]
    ttft = [svg.Line("TTFT p50", over["at_s"], [1000 * value for value in over["ttft_p50_s"]], dots=True)]
    return [
        page.card(f"{verdict.name}: throughput", svg.lines(rate, "s", "events/s", marks=verdict.marks_s)),
        page.card(f"{verdict.name}: TTFT", svg.lines(ttft, "s", "ms", marks=verdict.marks_s)),
    ]


def _memory(verdict: Verdict) -> list[str]:
    series = [
        svg.Line(name, [float(i) for i in range(len(values))], [value / 2**20 for value in values])
        for name, values in verdict.memory.items()
    ]
    return [page.card(f"{verdict.name}: memory", svg.lines(series, "sample", "MiB"))] if series else []


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"
