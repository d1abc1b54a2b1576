"""The cases of each alert: series in which it fires, series in which it does not, and the time at which to look."""

Series = dict[str, str]

NODE = 'track="stable",role="decode",node_id="decode-0"'
PREFILL = 'track="stable",role="prefill",node_id="prefill-0"'
ROUTER = 'track="stable",role="router",node_id="router-0"'
GPU = f'{NODE},gpu="0"'
STEADY = "100"  # samples, 15 s apart: 25 minutes


def gauge(series: str, value: float, samples: str = STEADY) -> Series:
    return {series: f"{value}x{samples}"}


def growing(series: str, per_sample: float, samples: str = STEADY) -> Series:
    return {series: f"0+{per_sample}x{samples}"}


def latency(name: str, le_below: str, le_above: str) -> Series:
    """Return buckets in which 98 % of requests take at most `le_below`, and the rest at most `le_above`."""
    return {
        f'{name}_bucket{{{ROUTER},le="{le_below}"}}': f"0+98x{STEADY}",
        f'{name}_bucket{{{ROUTER},le="{le_above}"}}': f"0+100x{STEADY}",
        f'{name}_bucket{{{ROUTER},le="+Inf"}}': f"0+100x{STEADY}",
    }


def answers(failed_per_mille: float, samples: str = STEADY) -> Series:
    return {
        f'baton_requests_total{{{ROUTER},status="200"}}': f"0+{1000 - failed_per_mille}x{samples}",
        f'baton_requests_total{{{ROUTER},status="503"}}': f"0+{failed_per_mille}x{samples}",
        f'baton_requests_total{{{ROUTER},status="499"}}': f"0+500x{samples}",  # disconnected clients are not failures
        f'baton_requests_total{{{ROUTER},status="429"}}': f"0+500x{samples}",
    }


def pool(num_up: int, num_down: int) -> Series:
    ups = [1] * num_up + [0] * num_down
    return {
        f'up{{job="baton",track="stable",role="decode",node_id="decode-{i}"}}': f"{up}x{STEADY}"
        for i, up in enumerate(ups)
    }


def transfers(failed: float) -> Series:
    return growing(f"baton_kv_transfer_seconds_count{{{PREFILL}}}", 1000 - failed) | growing(
        f'baton_kv_transfer_failures_total{{{NODE},reason="stalled"}}', failed
    )


def redis(num_failing: int, num_processes: int = 4) -> Series:
    series: Series = {}
    for i in range(num_processes):
        where = f'track="stable",role="decode",node_id="decode-{i}"'
        series |= gauge(f'baton_build_info{{{where},version="0"}}', 1)
        series |= growing(f'baton_redis_failures_total{{{where},caller="registry"}}', 1 if i < num_failing else 0)
    return series


def ready(num_nodes: int, in_flight: float) -> Series:
    return gauge(f'baton_router_nodes{{{ROUTER},pool="prefill",state="ready"}}', num_nodes) | gauge(
        f"baton_router_requests_in_flight{{{ROUTER}}}", in_flight
    )


TTFT, TPOT = "baton_time_to_first_token_seconds", "baton_time_per_output_token_seconds"
MEMORY_TOTAL = gauge(f"baton_gpu_memory_total_bytes{{{GPU}}}", 100)
NAN = f'baton_request_errors_total{{{NODE},code="numerical_error"}}'
RESTARTED = 'process_start_time_seconds{job="baton",track="stable",role="decode",instance="10.0.0.1:9001"}'
XID = 'DCGM_FI_DEV_XID_ERRORS{gpu="0",Hostname="gpu-host-1"}'
LONG = "250"  # samples for the slow alerts, a minute apart
SPENT = "0+20x120 2400x75"  # two hours of failures that ended more than an hour ago
SLOW = ("BatonAvailabilityBurn",)
WHOLE = {("BatonRouterDown", "critical")}  # alerts about all fleets that Prometheus sees

# (alert, severity) -> what fires it, what does not, and after how long to look
CASES: dict[tuple[str, str], tuple[Series, Series, str]] = {
    ("BatonKVUsageHigh", "warning"): (
        gauge(f"baton_kv_usage_ratio{{{NODE}}}", 0.86),
        gauge(f"baton_kv_usage_ratio{{{NODE}}}", 0.84),
        "5m",
    ),
    ("BatonKVUsageHigh", "critical"): (
        gauge(f"baton_kv_usage_ratio{{{NODE}}}", 0.96),
        {f"baton_kv_usage_ratio{{{NODE}}}": "0.97x6 0.5x100"},  # a minute and a half is too short for an alert
        "4m",
    ),
    ("BatonQueueLong", "warning"): (
        gauge(f"baton_requests_waiting{{{NODE}}}", 51),
        gauge(f"baton_requests_waiting{{{NODE}}}", 49),
        "5m",
    ),
    ("BatonQueueLong", "critical"): (
        gauge(f"baton_router_requests_waiting{{{ROUTER}}}", 201),
        gauge(f"baton_router_requests_waiting{{{ROUTER}}}", 199),
        "5m",
    ),
    ("BatonPreemptions", "warning"): (
        growing(f"baton_preemptions_total{{{NODE}}}", 2),
        growing(f"baton_preemptions_total{{{NODE}}}", 1),
        "5m",
    ),
    ("BatonPreemptions", "critical"): (
        growing(f"baton_preemptions_total{{{NODE}}}", 6),
        growing(f"baton_preemptions_total{{{NODE}}}", 4),
        "5m",
    ),
    ("BatonTTFTSlow", "warning"): (latency(TTFT, "1", "2.2"), latency(TTFT, "1", "1.9"), "15m"),
    ("BatonTTFTSlow", "critical"): (latency(TTFT, "2", "5"), latency(TTFT, "1", "2"), "15m"),
    ("BatonTPOTSlow", "warning"): (latency(TPOT, "0.1", "0.22"), latency(TPOT, "0.1", "0.19"), "15m"),
    ("BatonTPOTSlow", "critical"): (latency(TPOT, "0.2", "0.5"), latency(TPOT, "0.1", "0.2"), "15m"),
    ("BatonErrors", "warning"): (answers(6), answers(4), "10m"),
    ("BatonErrors", "critical"): (answers(21), answers(19), "10m"),
    ("BatonAvailabilityBurn", "warning"): (
        answers(7, LONG),
        answers(0, LONG) | {f'baton_requests_total{{{ROUTER},status="500"}}': SPENT},
        "190m",
    ),
    ("BatonAvailabilityBurn", "critical"): (answers(15, LONG), answers(14, LONG), "70m"),
    ("BatonNodeDown", "warning"): (pool(3, 1), pool(4, 0), "3m"),
    ("BatonNodeDown", "critical"): (pool(1, 2), pool(2, 2), "3m"),
    ("BatonRouterDown", "warning"): (
        gauge(f'up{{job="baton",{ROUTER}}}', 0),
        gauge(f'up{{job="baton",{ROUTER}}}', 1) | gauge(f'up{{job="baton",{NODE}}}', 0),
        "3m",
    ),
    ("BatonRouterDown", "critical"): (
        gauge(f'up{{job="baton",{ROUTER}}}', 0),
        gauge(f'up{{job="baton",{ROUTER}}}', 1) | gauge('up{job="baton",track="stable",role="router"}', 0),
        "3m",
    ),
    ("BatonPoolEmpty", "critical"): (ready(0, 3), ready(0, 0), "3m"),
    ("BatonRestarts", "warning"): ({RESTARTED: "100x8 200x8 300x8 400x8"}, {RESTARTED: "100x8 200x8 300x24"}, "8m"),
    ("BatonFailovers", "warning"): (
        growing(f'baton_router_failovers_total{{{ROUTER},reason="lost"}}', 1),
        growing(f'baton_router_failovers_total{{{ROUTER},reason="lost"}}', 0.4),
        "10m",
    ),
    ("BatonRedisDown", "warning"): (redis(1), redis(0), "5m"),
    ("BatonRedisDown", "critical"): (redis(3), redis(2), "5m"),
    ("BatonTransferFailures", "warning"): (transfers(15), transfers(5), "10m"),
    ("BatonTransferFailures", "critical"): (transfers(150), transfers(50), "10m"),
    ("BatonNumericalErrors", "warning"): (growing(NAN, 0.05), gauge(NAN, 7), "10m"),
    ("BatonNumericalErrors", "critical"): (growing(NAN, 0.2), growing(NAN, 0.1), "12m"),
    ("BatonGPUHot", "warning"): (
        gauge(f"baton_gpu_temperature_celsius{{{GPU}}}", 81),
        gauge(f"baton_gpu_temperature_celsius{{{GPU}}}", 80),
        "5m",
    ),
    ("BatonGPUHot", "critical"): (
        gauge(f"baton_gpu_temperature_celsius{{{GPU}}}", 86),
        gauge(f"baton_gpu_temperature_celsius{{{GPU}}}", 85),
        "5m",
    ),
    ("BatonGPUMemoryFull", "warning"): (
        MEMORY_TOTAL | gauge(f"baton_gpu_memory_used_bytes{{{GPU}}}", 96),
        MEMORY_TOTAL | gauge(f"baton_gpu_memory_used_bytes{{{GPU}}}", 94),
        "8m",
    ),
    ("BatonGPUMemoryFull", "critical"): (
        MEMORY_TOTAL | gauge(f"baton_gpu_memory_used_bytes{{{GPU}}}", 99),
        MEMORY_TOTAL | gauge(f"baton_gpu_memory_used_bytes{{{GPU}}}", 98),
        "8m",
    ),
    ("BatonGPUIdle", "warning"): (
        gauge(f"baton_gpu_utilization_ratio{{{GPU}}}", 0.1) | gauge(f"baton_requests_waiting{{{NODE}}}", 3),
        gauge(f"baton_gpu_utilization_ratio{{{GPU}}}", 0.1) | gauge(f"baton_requests_waiting{{{NODE}}}", 0),
        "20m",
    ),
    ("BatonGPUSaturated", "warning"): (
        gauge(f"baton_gpu_utilization_ratio{{{GPU}}}", 1),
        gauge(f"baton_gpu_utilization_ratio{{{GPU}}}", 0.98),
        "20m",
    ),
    ("BatonGPUXid", "warning"): (gauge(XID, 31), gauge(XID, 0), "2m"),
    ("BatonGPUXid", "critical"): (gauge(XID, 48), gauge(XID, 31), "2m"),
    ("BatonGPUECC", "critical"): (
        {'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="0",Hostname="gpu-host-1"}': "0x8 1x100"},
        gauge('DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="0",Hostname="gpu-host-1"}', 5),
        "5m",
    ),
}
