"""The output of `baton loadtest`: lines for the terminal, and an HTML report."""

from collections.abc import Sequence
from pathlib import Path

from bench._load.report import over_throughput, over_time
from bench._report import page, svg
from fleet.loadtest.verdict import Verdict


def line(verdict: Verdict) -> str:
    """Return the lines of a phase: its verdict and its checks."""
    head = f"{verdict.name:<10} {_word(verdict.passed)}"
    return "\n".join([head, *(f"  {'✓' if check.passed else '✗'} {check.text}" for check in verdict.checks)])


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return the last line: the verdict on all phases."""
    failed = [verdict.name for verdict in verdicts if not verdict.passed]
    return f"FAIL: {', '.join(failed)}" if failed else f"pass: all of {', '.join(v.name for v in verdicts)}"


def write_html(path: Path, verdicts: Sequence[Verdict], notes: Sequence[str]) -> None:
    """Write the report: a table of verdicts, then plots of each phase."""
    rows = [[verdict.name, _word(check.passed), check.text] for verdict in verdicts for check in verdict.checks]
    boxes = [page.card("Verdicts", page.table(["phase", "verdict", "what"], rows), wide=True)]
    for verdict in verdicts:
        over = verdict.timeline
        drawn = over_time(verdict.name, over, marks_s=verdict.marks_s) if over else []
        boxes += _curve(verdict) + drawn + _memory(verdict)
    page.write(path, f"Load test: {'pass' if all(v.passed for v in verdicts) else 'FAIL'}", notes, page.cards(boxes))


def _curve(verdict: Verdict) -> list[str]:
    if not verdict.curve:
        return []
    rates = [level["output_tokens_per_s"] for level in verdict.curve]
    levels = [str(level["concurrency"]) for level in verdict.curve]
    return [
        page.card(
            f"{verdict.name}: throughput by concurrency", svg.bars(levels, [("output tokens/s", rates)], "tokens/s")
        ),
        page.card(f"{verdict.name}: TTFT over throughput", over_throughput(verdict.curve, "ttft")),
    ]


def _memory(verdict: Verdict) -> list[str]:
    series = [
        svg.Line(name, [float(i) for i in range(len(values))], [value / 2**20 for value in values])
        for name, values in verdict.memory.items()
    ]
    return [page.card(f"{verdict.name}: memory", svg.lines(series, "sample", "MiB"))] if series else []


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"
