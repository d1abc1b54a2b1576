"""Where TTFT goes, from a router's own histograms: queue, prefill, transfer, first decode."""

import asyncio
import re

PHASES = ("queue", "prefill", "transfer", "first_decode")
_METRIC = re.compile(r'^baton_request_phase_seconds_(sum|count)\{.*?phase="(\w+)".*?\} (\S+)$', re.MULTILINE)
_TIMEOUT_S = 5.0

Totals = dict[tuple[str, str], float]


async def read(host: str, port: int, api_key: str) -> Totals:
    """(sum | count, phase) -> value now; empty where the endpoint has no such metrics."""
    head = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head.encode() + b"\r\n")
            text = (await reader.read()).decode()
            writer.close()
    except (OSError, TimeoutError):
        return {}
    return parse(text)


def parse(text: str) -> Totals:
    """The phases in a Prometheus exposition, summed over other labels."""
    totals: Totals = {}
    for kind, phase, value in _METRIC.findall(text):
        totals[kind, phase] = totals.get((kind, phase), 0.0) + float(value)
    return totals


def between(before: Totals, after: Totals) -> dict[str, float]:
    """Mean seconds of each phase of the requests that ended in between."""
    means = {}
    for phase in PHASES:
        count = after.get(("count", phase), 0.0) - before.get(("count", phase), 0.0)
        if count:
            total = after[("sum", phase)] - before.get(("sum", phase), 0.0)
            means[phase] = total / count
    return means
