"""The dashboard of both pools: the signals they scale on, and the transfers between them."""

from panels import Dashboard, Panel

from boards.queries import TRACK, quantiles, rate, total


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
            "Share of KV blocks held by requests",
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
            "Prompt tokens of requests that started, and sampled tokens",
        ),
        Panel(
            "Prefix cache hits",
            "percentunit",
            {
                "{{node_id}}": f"{rate('baton_prefix_cache_hit_tokens_total', labels, 'node_id')} / "
                f"clamp_min({rate('baton_prompt_tokens_total', labels, 'node_id')}, 1e-9)"
            },
            "Share of prompt tokens found in the node's own cache",
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
                "The signal that this pool scales on: 8,192 per node",
                thresholds=(8192, 32768),
            ),
        ),
        "Decode": _pool(
            "decode",
            Panel(
                "Preemptions/min",
                "short",
                {"{{node_id}}": f'sum by (node_id) (increase(baton_preemptions_total{{{TRACK},role="decode"}}[1m]))'},
                "Requests preempted because KV blocks ran out. This pool scales on KV usage and running requests",
                thresholds=(5, 20),
            ),
        ),
        "KV transfers between the pools": (
            Panel(
                "KV transferred",
                "Bps",
                {"{{transport}}": rate("baton_kv_transfer_bytes_total", TRACK, "transport")},
                "Bytes per second in accepted transfers",
            ),
            Panel(
                "Transfer after prefill",
                "s",
                quantiles("baton_kv_transfer_seconds", TRACK),
                "Time from the end of the prefill to the end of the transfer",
            ),
            Panel(
                "Failed transfers",
                "short",
                {"{{reason}}": f"{rate('baton_kv_transfer_failures_total', TRACK, 'reason')} or vector(0)"},
                "KV transfers per second that failed; they are repeated, or their prompts recomputed",
            ),
        ),
    },
    {"track": "baton_build_info, track"},
)
