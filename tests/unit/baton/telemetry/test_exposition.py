from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from baton.telemetry import gpu_metrics
from baton.telemetry.exposition import Exposition, exemplar


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_metrics_carry_the_labels_of_their_process(registry: CollectorRegistry) -> None:
    Counter("baton_seen", "Ours", registry=registry).inc()
    Gauge("baton_of_pools", "Has a role of its own", ["role"], registry=registry).labels("decode").set(2)
    Gauge("process_things", "Not ours", registry=registry).set(1)
    text = Exposition({"role": "router", "node_id": "r0"}, registry).render()[0].decode()
    assert 'baton_seen_total{node_id="r0",role="router"} 1.0' in text
    assert 'baton_of_pools{node_id="r0",role="decode"} 2.0' in text
    assert "process_things 1.0" in text


def test_exemplars_are_sent_only_in_openmetrics(registry: CollectorRegistry) -> None:
    Histogram("baton_times_seconds", "Ours", registry=registry).observe(0.2, exemplar("req-1"))
    exposition = Exposition({}, registry)
    body, kind = exposition.render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert b'# {request_id="req-1"} 0.2' in body
    body, kind = exposition.render("")
    assert kind.startswith("text/plain")
    assert b"req-1" not in body


def test_an_id_that_is_too_long_for_an_exemplar_is_left_out(registry: CollectorRegistry) -> None:
    histogram = Histogram("baton_times_seconds", "Ours", registry=registry)
    for length in (118, 119, 128):
        histogram.observe(1, exemplar("x" * length))  # prometheus_client raises where it is longer than 128 in all
    assert exemplar("x" * 118) is not None
    assert exemplar("x" * 119) is None


class StandInNvml:
    """The NVML calls that are used; device 1 has fallen off the bus."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"device {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return f"device {uuid}"

    def nvmlDeviceGetMemoryInfo(self, device: str) -> Any:  # noqa: N802
        if device == "device 1":
            raise self.NVMLError
        return SimpleNamespace(used=3 * 2**30, total=80 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, device: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetTemperature(self, device: str, which: int) -> int:  # noqa: N802
        return 61


def test_gpus_that_can_be_read_are_exposed(registry: CollectorRegistry) -> None:
    nvml = StandInNvml()
    registry.register(gpu_metrics.GpuMetrics(nvml, gpu_metrics.visible(nvml, None)))
    text = Exposition({"role": "decode", "node_id": "d0"}, registry).render()[0].decode()
    assert 'baton_gpu_utilization_ratio{gpu="0",node_id="d0",role="decode"} 0.75' in text
    assert 'baton_gpu_memory_used_bytes{gpu="0",node_id="d0",role="decode"} 3.221225472e+09' in text
    assert 'baton_gpu_temperature_celsius{gpu="0",node_id="d0",role="decode"} 61.0' in text
    assert 'gpu="1"' not in text


def test_a_process_sees_the_gpus_that_it_may_use() -> None:
    assert gpu_metrics.visible(StandInNvml(), "1, GPU-7") == {"1": "device 1", "GPU-7": "device GPU-7"}
    assert gpu_metrics.visible(StandInNvml(), "") == {}
