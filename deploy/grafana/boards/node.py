"""The dashboard of one node: its load, its errors, its process and device."""

from panels import Dashboard, Panel

from boards.queries import rate, total

NODE = 'node_id="$node"'

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
                "Running: in the batch. Waiting: not yet scheduled",
            ),
            Panel(
                "KV blocks",
                "short",
                {"{{state}}": total("baton_kv_blocks", NODE, "state")},
                "Free, cached, running and leased blocks add up to the pool",
            ),
            Panel(
                "KV usage",
                "percentunit",
                {"now": f"max(baton_kv_usage_ratio{{{NODE}}})"},
                "Share of KV blocks held by requests",
                kind="gauge",
                thresholds=(0.9, 0.95),
                maximum=1,
            ),
            Panel(
                "Steps/s",
                "short",
                {"steps": rate("baton_steps_total", NODE)},
                "If there are none while requests run, the node is stuck",
            ),
            Panel(
                "Step duration", "s", {"mean": f"max(baton_step_seconds{{{NODE}}})"}, "Mean duration of recent steps"
            ),
            Panel(
                "Tokens/s",
                "short",
                {
                    "prompt": rate("baton_prompt_tokens_total", NODE),
                    "output": rate("baton_generation_tokens_total", NODE),
                },
                "Prompt tokens of requests that started, and sampled tokens",
            ),
        ),
        "Errors": (
            Panel(
                "Failed requests",
                "short",
                {"{{code}}": f"{rate('baton_request_errors_total', NODE, 'code')} or vector(0)"},
                "Requests per second that ended with an error on this node",
            ),
            Panel(
                "Preemptions/min",
                "short",
                {"preempted": f"sum(increase(baton_preemptions_total{{{NODE}}}[1m]))"},
                "Requests preempted because KV blocks ran out",
                thresholds=(5, 20),
            ),
            Panel(
                "Failed transfers",
                "short",
                {"{{reason}}": f"{rate('baton_kv_transfer_failures_total', NODE, 'reason')} or vector(0)"},
                "KV transfers per second that failed, by reason",
            ),
        ),
        "Process and device": (
            Panel(
                "Memory",
                "bytes",
                {"resident": f"max(process_resident_memory_bytes{{{NODE}}})"},
                "Resident memory of the process; on CPUs it includes weights and KV blocks",
            ),
            Panel(
                "CPU", "short", {"cores": rate("process_cpu_seconds_total", NODE)}, "Cores that the process keeps busy"
            ),
            Panel("Open files", "short", {"open": f"max(process_open_fds{{{NODE}}})"}, "Mostly sockets"),
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
