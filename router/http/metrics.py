"""Metrics of the router's HTTP side."""

from collections.abc import Mapping

from prometheus_client import Gauge

from baton.telemetry.unlocked import Counter, Histogram

TIME_TO_FIRST_TOKEN = Histogram(
    "baton_time_to_first_token_seconds",
    "Time from the arrival of a request to its first token",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "baton_time_per_output_token_seconds",
    "Mean time per token of a choice after the first one",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
)
REQUEST = Histogram(
    "baton_request_seconds",
    "Time from the arrival of a request to the end of its answer",
    buckets=(0.025, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60),
)
PHASE = Histogram(
    "baton_request_phase_seconds",
    "Time of a request's phases up to its first decoded tokens",
    ["phase"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
REQUESTS = Counter("baton_requests", "Answered requests, by status (499: the client left)", ["model", "status"])
IN_FLIGHT = Gauge("baton_requests_in_flight", "Requests being answered")
PROMPT_TOKENS = Counter("baton_router_prompt_tokens", "Prompt tokens of submitted requests")
GENERATION_TOKENS = Counter("baton_router_generation_tokens", "Output tokens received from nodes")
CACHE_HIT_TOKENS = Counter("baton_router_prefix_cache_hit_tokens", "Prompt tokens found in a node's prefix cache")

PHASES = ("queue", "prefill", "transfer", "first_decode")
_OF_TIMING = {f"{phase}_s": PHASE.labels(phase) for phase in PHASES}


def observe_phases(timings: Mapping[str, float]) -> None:
    """Record the known phases of a finished job."""
    for name, seconds in timings.items():
        _OF_TIMING[name].observe(seconds)
