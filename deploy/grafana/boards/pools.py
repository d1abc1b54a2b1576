"""Each pool, by what it is scaled by, and what travels between them."""

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
