"""The figures of a run: percentiles of TTFT, TPOT, ITL and E2E, throughput, goodput, errors by code."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench._load.sse_client import Stream

_NUM_POINTS = 60  # points of a timeline

PERCENTS = (50, 90, 95, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2e")


def figures(
    streams: Sequence[Stream], elapsed_s: float, *, slo_ttft_s: float = 0.0, slo_tpot_s: float = 0.0
) -> dict[str, Any]:
    """Return the figures (`ttft_p50_s` and so on, in seconds) of complete responses. A limit of 0 means none."""
    good = [stream for stream in streams if stream.ok]
    num_within = sum(is_within(stream, slo_ttft_s, slo_tpot_s) for stream in good)
    measured: dict[str, Any] = {
        "requests": len(streams),
        "failed": len(streams) - len(good),
        "errors": dict(Counter(code_of(stream) for stream in streams if not stream.ok)),
        "without_tpot": sum(not stream.has_tpot for stream in good),
        "error": next((f"{s.status} {s.error}".strip() for s in streams if not s.ok), ""),
        "elapsed_s": elapsed_s,
        "prompt_tokens": sum(s.num_prompt_tokens for s in good),
        "output_tokens": sum(s.num_output_tokens for s in good),
        "requests_per_s": len(good) / elapsed_s,
        "output_tokens_per_s": sum(s.num_output_tokens for s in good) / elapsed_s,
        "prompt_tokens_per_s": sum(s.num_prompt_tokens for s in good) / elapsed_s,
        "goodput_per_s": num_within / elapsed_s,
        "good_share": num_within / len(streams) if streams else math.nan,
    }
    for name, values in _latencies(good).items():
        ordered = sorted(values)
        measured |= {f"{name}_p{percent}_s": nearest_rank(ordered, percent) for percent in PERCENTS}
        measured[f"{name}_mean_s"] = sum(ordered) / len(ordered) if ordered else math.nan
    return measured


def is_within(stream: Stream, slo_ttft_s: float, slo_tpot_s: float) -> bool:
    """Return whether a response is complete and within both limits."""
    return stream.ok and not (0 < slo_ttft_s < stream.ttft_s) and not (0 < slo_tpot_s < stream.tpot_s)


def code_of(stream: Stream) -> str:
    """Return the kind of an error, for counting: an HTTP status, or a description of a broken stream."""
    if stream.timed_out:
        return "timeout"
    if stream.status == 0:
        return "no answer"
    return str(stream.status) if stream.status != 200 else "broken stream"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; NaN if there are no values."""
    return nearest_rank(sorted(values), percent)


def nearest_rank(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of sorted values."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def _latencies(good: Sequence[Stream]) -> dict[str, list[float]]:
    return {
        "ttft": [s.ttft_s for s in good],
        "tpot": [s.tpot_s for s in good if s.has_tpot],
        "itl": [gap for s in good for gap in s.gaps_s],
        "e2e": [s.e2e_s for s in good],
    }


def timeline(streams: Sequence[Stream], start_s: float) -> dict[str, list[float]]:
    """Divide the run into intervals; return tokens per second, and the median TTFT of requests begun in each."""
    ended_s = max((s.ended for s in streams), default=start_s)
    width_s = max((ended_s - start_s) / _NUM_POINTS, 1e-3)
    tokens, ttfts = [0.0] * _NUM_POINTS, [[] for _ in range(_NUM_POINTS)]  # type: tuple[list[float], list[list[float]]]
    for stream in (s for s in streams if s.times):
        for at_s in stream.times:
            tokens[min(int((at_s - start_s) / width_s), _NUM_POINTS - 1)] += 1
        ttfts[min(max(int((stream.began - start_s) / width_s), 0), _NUM_POINTS - 1)].append(stream.ttft_s)
    return {
        "at_s": [(i + 0.5) * width_s for i in range(_NUM_POINTS)],
        "events_per_s": [count / width_s for count in tokens],
        "ttft_p50_s": [percentile(part, 50) for part in ttfts],
    }
