"""Utilization, memory and temperature of the GPUs that this process may use, read from NVML at each scrape.

Without NVML (no GPU, or no `nvidia-ml-py`) these metrics are absent.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

FAMILIES = {
    "baton_gpu_utilization_ratio": "Share of NVML's last sample period in which the GPU computed, 0 to 1",
    "baton_gpu_memory_used_bytes": "Device memory in use by all processes",
    "baton_gpu_memory_total_bytes": "Total device memory",
    "baton_gpu_temperature_celsius": "Temperature of the GPU",
}
_log = logging.getLogger(__name__)


class GpuMetrics(Collector):
    """A collector of these metrics."""

    def __init__(self, nvml: ModuleType | Any, devices: Mapping[str, Any]) -> None:
        """`nvml` is the module pynvml, initialized; `devices` are its handles, by index or UUID."""
        self._nvml, self._devices = nvml, devices

    def collect(self) -> Iterator[Metric]:
        """Return the metrics. A GPU that NVML fails to read is left out."""
        families = {name: GaugeMetricFamily(name, text, labels=["gpu"]) for name, text in FAMILIES.items()}
        for gpu, device in self._devices.items():
            try:
                values = self._read(device)
            except self._nvml.NVMLError:
                continue
            for name, value in zip(FAMILIES, values, strict=True):
                families[name].add_metric([gpu], value)
        yield from families.values()

    def _read(self, device: Any) -> tuple[float, float, float, float]:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        return (
            nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
            float(memory.used),
            float(memory.total),
            float(nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)),
        )


def register(registry: CollectorRegistry = REGISTRY, env: Mapping[str, str] = os.environ) -> bool:
    """Register a collector for the GPUs that CUDA_VISIBLE_DEVICES leaves to this process; False if there are none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        devices = visible(pynvml, env.get("CUDA_VISIBLE_DEVICES"))
    except ImportError:
        return False
    except pynvml.NVMLError as error:
        _log.info("no metrics of GPUs: %s", error)
        return False
    if devices:
        registry.register(GpuMetrics(pynvml, devices))
    return bool(devices)


def visible(nvml: ModuleType | Any, names: str | None) -> dict[str, Any]:
    """Return NVML handles of the devices in CUDA_VISIBLE_DEVICES, by index or UUID; all devices if it is unset."""
    if names is None:
        return {str(i): nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())}
    devices = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        by_index = name.isdigit()
        find = nvml.nvmlDeviceGetHandleByIndex if by_index else nvml.nvmlDeviceGetHandleByUUID
        devices[name] = find(int(name) if by_index else name)
    return devices
