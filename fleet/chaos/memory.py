"""Memory of a fleet's processes during `baton chaos`: whether it grows.

What a process takes while its caches fill says nothing, so the first third of what was seen of it is left out; those
that did not live long enough are, too.
"""

import contextlib
import statistics
from collections import defaultdict

import psutil

from fleet.state import ProcessState

MIN_SAMPLES = 12
MAX_GROWTH_MIB = 16.0  # of medians, from the second third to the last
MAX_GROWTH_SHARE = 0.05


class Memory:
    """Samples per incarnation of a service."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[float]] = defaultdict(list)  # MiB

    def sample(self, services: list[ProcessState]) -> None:
        """Look at all of them now."""
        for service in services:
            with contextlib.suppress(psutil.Error):
                if service.pid is not None and service.state == "ready":
                    self.samples[service.id, service.pid].append(_resident_mib(service.pid))

    def growth(self) -> list[tuple[str, float, float]]:
        """(service, MiB before, MiB in the end) of those that lived long enough."""
        found = []
        for (name, _), samples in sorted(self.samples.items()):
            third = len(samples) // 3
            if len(samples) >= MIN_SAMPLES:
                found.append((name, statistics.median(samples[third:-third]), statistics.median(samples[-third:])))
        return found

    def grown(self) -> list[str]:
        """A line for each service that takes more and more."""
        return [
            f"{name} grew from {before:.0f} to {after:.0f} MiB"
            for name, before, after in self.growth()
            if after - before > max(MAX_GROWTH_MIB, MAX_GROWTH_SHARE * before)
        ]


def _resident_mib(pid: int) -> float:
    """Of the process and its children: UCX lives in one of its own."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 2**20
