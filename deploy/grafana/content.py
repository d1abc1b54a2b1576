"""What is on the dashboards. After a change: `python deploy/grafana/build.py`."""

from panels import Dashboard, Panel

TRACK = 'track=~"$track"'
NODE = 'node_id="$node"'
QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
TTFT, TPOT, E2E = (
    "baton_time_to_first_token_seconds",
    "baton_time_per_output_token_seconds",
    "baton_request_seconds",
)


def quantiles(histogram: str, labels: str) -> dict[str, str]:
    """p50, p95 and p99 of a histogram."""
    rate = f"sum by (le) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return {legend: f"histogram_quantile({q}, {rate})" for legend, q in QUANTILES}


def rate(counter: str, labels: str, by: str = "") -> str:
    """Events per second."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{{{labels}}}[$__rate_interval]))"


def total(gauge: str, labels: str, by: str = "") -> str:
    """A gauge over all that have it."""
    return f"sum{f' by ({by})' if by else ''} ({gauge}{{{labels}}})"


def _latency(labels: str) -> tuple[Panel, ...]:
    return (
        Panel("TTFT", "s", quantiles(TTFT, labels), "From a request's arrival to its first token", thresholds=(1.5, 2)),
        Panel("TPOT", "s", quantiles(TPOT, labels), "Between tokens, the first not counted", thresholds=(0.15, 0.2)),
        Panel("End to end", "s", quantiles(E2E, labels), "From a request's arrival to the end of its answer"),
    )


_FAILED = f'baton_requests_total{{{TRACK},status=~"5.."}}'
_ANSWERED = f"baton_requests_total{{{TRACK}}}"

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
                "Tokens as clients are told",
            ),
            Panel(
                "Requests/s", "reqps", {"{{status}}": rate("baton_requests_total", TRACK, "status")}, "By HTTP status"
            ),
            Panel(
                "Failed",
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
                "The fullest node of each pool: share of KV blocks that requests hold",
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
                "Requests that wait. Alerts at 50 and 200",
                thresholds=(50, 200),
            ),
            Panel(
                "Nodes ready",
                "short",
                {"{{pool}}": f'max by (pool) (baton_router_nodes{{{TRACK},state="ready"}})'},
                "As the routers see them",
                kind="stat",
            ),
        ),
        "Latency": _latency(TRACK),
        "Where TTFT goes": (
            Panel(
                "Phases, mean",
                "s",
                {
                    "{{phase}}": f"{rate('baton_request_phase_seconds_sum', TRACK, 'phase')} / "
                    f"clamp_min({rate('baton_request_phase_seconds_count', TRACK, 'phase')}, 1e-9)"
                },
                "Queue: add prefill nodes. Transfer: look at the network. First decode: add decode nodes",
            ),
            Panel(
                "Prefix cache hits",
                "percentunit",
                {
                    "hit rate": f"{rate('baton_router_prefix_cache_hit_tokens_total', TRACK)} / "
                    f"clamp_min({rate('baton_router_prompt_tokens_total', TRACK)}, 1e-9)"
                },
                "Prompt tokens that were not computed again",
                maximum=1,
            ),
            Panel(
                "Made again",
                "short",
                {"{{reason}}": f"{rate('baton_router_failovers_total', TRACK, 'reason')} or vector(0)"},
                "Attempts per second that failed and were repeated: clients saw nothing of them",
            ),
        ),
        "Redis": (
            Panel(
                "Failures",
                "short",
                {"{{caller}}": f"{rate('baton_redis_failures_total', TRACK, 'caller')} or vector(0)"},
                "Calls per second that failed or took more than 50 ms",
            ),
            Panel(
                "In flight", "short", {"requests": total("baton_requests_in_flight", TRACK)}, "Requests being answered"
            ),
            Panel(
                "Memory of routers",
                "bytes",
                {"{{instance}}": f'process_resident_memory_bytes{{{TRACK},role="router"}}'},
                "Grows with open streams and with the replica of the prefix index, and stays bounded",
            ),
        ),
    },
    {"track": "baton_build_info, track"},
)


def _pool(role: str, signal: Panel) -> tuple[Panel, ...]:
    labels = f'{TRACK},role="{role}"'
    return (
        signal,
        Panel(
            "Waiting", "short", {"{{node_id}}": total("baton_requests_waiting", labels, "node_id")}, "Not yet scheduled"
        ),
        Panel("Running", "short", {"{{node_id}}": total("baton_requests_running", labels, "node_id")}, "In the batch"),
        Panel(
            "KV usage",
            "percentunit",
            {"{{node_id}}": f"max by (node_id) (baton_kv_usage_ratio{{{labels}}})"},
            "Share of KV blocks that requests hold",
            thresholds=(0.9, 0.95),
            maximum=1,
        ),
        Panel(
            "Tokens/s",
            "short",
            {
                "prompt, {{node_id}}": rate("baton_prompt_tokens_total", labels, "node_id"),
                "output, {{node_id}}": rate("baton_generation_tokens_total", labels, "node_id"),
            },
            "Prompt tokens of requests that began, and tokens sampled",
        ),
        Panel(
            "Prefix cache hits",
            "percentunit",
            {
                "{{node_id}}": f"{rate('baton_prefix_cache_hit_tokens_total', labels, 'node_id')} / "
                f"clamp_min({rate('baton_prompt_tokens_total', labels, 'node_id')}, 1e-9)"
            },
            "Tokens found in the node's own cache",
            maximum=1,
        ),
    )


POOLS = Dashboard(
    "baton-pools",
    "Baton: pools",
    {
        "Prefill": _pool(
            "prefill",
            Panel(
                "Queued prompt tokens",
                "short",
                {"{{node_id}}": total("baton_waiting_prompt_tokens", f'{TRACK},role="prefill"', "node_id")},
                "What this pool scales by: 8,192 for each node",
                thresholds=(8192, 32768),
            ),
        ),
        "Decode": _pool(
            "decode",
            Panel(
                "Preemptions/min",
                "short",
                {"{{node_id}}": f'sum by (node_id) (increase(baton_preemptions_total{{{TRACK},role="decode"}}[1m]))'},
                "Requests set back for want of blocks: this pool scales by KV usage and running requests",
                thresholds=(5, 20),
            ),
        ),
        "Between them": (
            Panel(
                "KV shipped",
                "Bps",
                {"{{transport}}": rate("baton_kv_transfer_bytes_total", TRACK, "transport")},
                "Bytes per second in accepted transfers",
            ),
            Panel(
                "Transfer after prefill",
                "s",
                quantiles("baton_kv_transfer_seconds", TRACK),
                "What a transfer takes once the prompt is computed",
            ),
            Panel(
                "Transfers that failed",
                "short",
                {"{{reason}}": f"{rate('baton_kv_transfer_failures_total', TRACK, 'reason')} or vector(0)"},
                "Per second; the prompt is then computed again",
            ),
        ),
    },
    {"track": "baton_build_info, track"},
)

NODE_BOARD = Dashboard(
    "baton-node",
    "Baton: one node",
    {
        "Load": (
            Panel(
                "Requests",
                "short",
                {
                    "running": total("baton_requests_running", NODE),
                    "waiting": total("baton_requests_waiting", NODE),
                },
                "In the batch, and not yet scheduled",
            ),
            Panel(
                "KV blocks",
                "short",
                {"{{state}}": total("baton_kv_blocks", NODE, "state")},
                "free, cached, running, leased: together the pool",
            ),
            Panel(
                "KV usage",
                "percentunit",
                {"now": f"max(baton_kv_usage_ratio{{{NODE}}})"},
                "Share of KV blocks that requests hold",
                kind="gauge",
                thresholds=(0.9, 0.95),
                maximum=1,
            ),
            Panel(
                "Steps/s", "short", {"steps": rate("baton_steps_total", NODE)}, "Zero while requests run: it is stuck"
            ),
            Panel("Step", "s", {"mean": f"max(baton_step_seconds{{{NODE}}})"}, "Mean length of lately run steps"),
            Panel(
                "Tokens/s",
                "short",
                {
                    "prompt": rate("baton_prompt_tokens_total", NODE),
                    "output": rate("baton_generation_tokens_total", NODE),
                },
                "Prompt tokens of requests that began, and tokens sampled",
            ),
        ),
        "Trouble": (
            Panel(
                "Errors",
                "short",
                {"{{code}}": f"{rate('baton_request_errors_total', NODE, 'code')} or vector(0)"},
                "Requests per second that ended with an error here",
            ),
            Panel(
                "Preemptions/min",
                "short",
                {"set back": f"sum(increase(baton_preemptions_total{{{NODE}}}[1m]))"},
                "Requests set back for want of blocks",
                thresholds=(5, 20),
            ),
            Panel(
                "Transfers that failed",
                "short",
                {"{{reason}}": f"{rate('baton_kv_transfer_failures_total', NODE, 'reason')} or vector(0)"},
                "Per second",
            ),
        ),
        "Process and device": (
            Panel(
                "Memory",
                "bytes",
                {"resident": f"max(process_resident_memory_bytes{{{NODE}}})"},
                "Of the process; weights and KV blocks are in it on a CPU",
            ),
            Panel("CPU", "short", {"cores": rate("process_cpu_seconds_total", NODE)}, "Cores that it keeps busy"),
            Panel("Open files", "short", {"open": f"max(process_open_fds{{{NODE}}})"}, "Sockets are most of them"),
            Panel(
                "GPU utilisation",
                "percentunit",
                {"GPU {{gpu}}": f"max by (gpu) (baton_gpu_utilization_ratio{{{NODE}}})"},
                "Warnings below 20 % with a queue, and above 99 %",
                maximum=1,
                conditional=True,
            ),
            Panel(
                "GPU memory",
                "percentunit",
                {
                    "GPU {{gpu}}": f"max by (gpu) (baton_gpu_memory_used_bytes{{{NODE}}}) / "
                    f"clamp_min(max by (gpu) (baton_gpu_memory_total_bytes{{{NODE}}}), 1)"
                },
                "Warning at 95 %",
                thresholds=(0.95, 0.985),
                maximum=1,
                conditional=True,
            ),
            Panel(
                "GPU temperature",
                "celsius",
                {"GPU {{gpu}}": f"max by (gpu) (baton_gpu_temperature_celsius{{{NODE}}})"},
                "Alerts at 80 and 85 °C",
                thresholds=(80, 85),
                conditional=True,
            ),
        ),
    },
    {"node": "baton_requests_running, node_id"},
)

TENANT = f'{TRACK},tenant=~"$tenant"'
FAILED = f'{TENANT},outcome="failed"'
USED = f'{TENANT},kind=~"prompt|output"'


def _tenants(title: str, unit: str, query: str, help_: str) -> Panel:
    return Panel(title, unit, {"{{tenant}}": query}, help_, conditional=True)


def _tokens(kind: str) -> str:
    return rate("baton_tenant_tokens_total", f'{TENANT},kind="{kind}"', "tenant")


TENANTS = Dashboard(
    "baton-tenants",
    "Baton: tenants",
    {
        "By the name of their key": (
            _tenants("Output tokens/s", "short", _tokens("output"), "What decode nodes work for"),
            _tenants("Prompt tokens/s", "short", _tokens("prompt"), "Those found in the cache are in it"),
            _tenants(
                "Prompt tokens not cached/s",
                "short",
                f"{_tokens('prompt')} - {_tokens('cached')}",
                "What prefill nodes work for",
            ),
            _tenants(
                "Requests/s", "reqps", rate("baton_tenant_requests_total", TENANT, "tenant"), "Served and failed ones"
            ),
            _tenants(
                "Failed",
                "percentunit",
                f"{rate('baton_tenant_requests_total', FAILED, 'tenant')} / "
                f"clamp_min({rate('baton_tenant_requests_total', TENANT, 'tenant')}, 1e-9)",
                "Of a tenant's own requests",
            ),
            _tenants(
                "Tokens within a day",
                "short",
                f"sum by (tenant) (increase(baton_tenant_tokens_total{{{USED}}}[24h]))",
                "What a bill would be made of",
            ),
        ),
    },
    {"track": "baton_build_info, track", "tenant": "baton_tenant_requests_total, tenant"},
)

DASHBOARDS = {"fleet": FLEET, "pools": POOLS, "node": NODE_BOARD, "tenants": TENANTS}
