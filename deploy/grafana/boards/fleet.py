"""The dashboard of the fleet as its users see it."""

from panels import Dashboard, Panel

from boards.queries import TRACK, quantiles, rate, total

TTFT, TPOT, E2E = (
    "baton_time_to_first_token_seconds",
    "baton_time_per_output_token_seconds",
    "baton_request_seconds",
)
_FAILED = f'baton_requests_total{{{TRACK},status=~"5.."}}'
_ANSWERED = f"baton_requests_total{{{TRACK}}}"


def _latency(labels: str) -> tuple[Panel, ...]:
    return (
        Panel("TTFT", "s", quantiles(TTFT, labels), "From a request's arrival to its first token", thresholds=(1.5, 2)),
        Panel("TPOT", "s", quantiles(TPOT, labels), "Mean time per token after the first", thresholds=(0.15, 0.2)),
        Panel("End to end", "s", quantiles(E2E, labels), "From a request's arrival to the end of its answer"),
    )


FLEET = Dashboard(
    "baton-fleet",
    "Baton: fleet",
    {
        "Now": (
            Panel(
                "Throughput",
                "short",
                {
                    "output tokens/s": rate("baton_router_generation_tokens_total", TRACK),
                    "prompt tokens/s": rate("baton_router_prompt_tokens_total", TRACK),
                },
                "Tokens as reported to clients",
            ),
            Panel(
                "Requests/s", "reqps", {"{{status}}": rate("baton_requests_total", TRACK, "status")}, "By HTTP status"
            ),
            Panel(
                "Failed requests",
                "percentunit",
                {
                    "5xx": f"(sum(rate({_FAILED}[$__rate_interval])) or vector(0)) "
                    f"/ clamp_min(sum(rate({_ANSWERED}[$__rate_interval])), 1e-9)"
                },
                "Alerts at 0.5 and 2 %",
                thresholds=(0.005, 0.02),
            ),
            Panel(
                "KV usage",
                "percentunit",
                {"{{role}}": f"max by (role) (baton_kv_usage_ratio{{{TRACK}}})"},
                "Share of KV blocks held by requests, on the fullest node of each pool",
                kind="gauge",
                thresholds=(0.9, 0.95),
                maximum=1,
            ),
            Panel(
                "Queue depth",
                "short",
                {
                    "{{role}} nodes": total("baton_requests_waiting", TRACK, "role"),
                    "without a node": total("baton_router_requests_waiting", TRACK),
                },
                "Waiting requests. Alerts at 50 and 200",
                thresholds=(50, 200),
            ),
            Panel(
                "Nodes ready",
                "short",
                {"{{pool}}": f'max by (pool) (baton_router_nodes{{{TRACK},state="ready"}})'},
                "Nodes that routers can use, by pool",
                kind="stat",
            ),
        ),
        "Latency": _latency(TRACK),
        "Phases of TTFT": (
            Panel(
                "Mean time per phase",
                "s",
                {
                    "{{phase}}": f"{rate('baton_request_phase_seconds_sum', TRACK, 'phase')} / "
                    f"clamp_min({rate('baton_request_phase_seconds_count', TRACK, 'phase')}, 1e-9)"
                },
                "Long queue: add prefill nodes. Long transfer: check the network. Long first decode: add decode nodes",
            ),
            Panel(
                "Prefix cache hits",
                "percentunit",
                {
                    "hit rate": f"{rate('baton_router_prefix_cache_hit_tokens_total', TRACK)} / "
                    f"clamp_min({rate('baton_router_prompt_tokens_total', TRACK)}, 1e-9)"
                },
                "Share of prompt tokens found in the cache",
                maximum=1,
            ),
            Panel(
                "Failovers",
                "short",
                {"{{reason}}": f"{rate('baton_router_failovers_total', TRACK, 'reason')} or vector(0)"},
                "Attempts per second that failed and were repeated; clients did not see these failures",
            ),
        ),
        "Redis and routers": (
            Panel(
                "Failed calls to Redis",
                "short",
                {"{{caller}}": f"{rate('baton_redis_failures_total', TRACK, 'caller')} or vector(0)"},
                "Calls per second that failed or took more than 50 ms",
            ),
            Panel(
                "Requests in flight",
                "short",
                {"requests": total("baton_requests_in_flight", TRACK)},
                "Requests being answered",
            ),
            Panel(
                "Memory of routers",
                "bytes",
                {"{{instance}}": f'process_resident_memory_bytes{{{TRACK},role="router"}}'},
                "Grows with open streams and with the replica of the prefix index, up to a bound",
            ),
        ),
    },
    {"track": "baton_build_info, track"},
)
