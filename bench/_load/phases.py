"""The phases of TTFT, from a router's own histograms: queue, prefill, transfer, first decode."""

import re

from bench._load.target import Target

PHASES = ("queue", "prefill", "transfer", "first_decode")
_METRIC = re.compile(r'^baton_request_phase_seconds_(sum|count)\{.*?phase="(\w+)".*?\} (\S+)$', re.MULTILINE)
_TIMEOUT_S = 5.0

Totals = dict[tuple[str, str], float]


async def read(target: Target) -> Totals:
    """Return (sum | count, phase) -> present value; empty if the endpoint has no such metrics."""
    try:
        _, body = await target.get("/metrics", _TIMEOUT_S)
    except OSError:
        return {}
    return parse(body.decode(errors="replace"))


def parse(text: str) -> Totals:
    """Return the phases in a Prometheus exposition, summed over other labels."""
    totals: Totals = {}
    for kind, phase, value in _METRIC.findall(text):
        totals[kind, phase] = totals.get((kind, phase), 0.0) + float(value)
    return totals


def between(before: Totals, after: Totals) -> dict[str, float]:
    """Return the mean seconds of each phase between two readings; empty if the router restarted or disappeared."""
    means = {}
    for phase in PHASES:
        count = after.get(("count", phase), 0.0) - before.get(("count", phase), 0.0)
        if count > 0:
            total = after[("sum", phase)] - before.get(("sum", phase), 0.0)
            means[phase] = total / count
    return means
