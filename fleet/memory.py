"""What memory services take, and whether that grows: the rule of `baton chaos` and of `baton loadtest`.

What a process takes while its caches fill says nothing, so the first quarter of what was seen of it is left out.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import psutil

MIN_SAMPLES = 12
_MAX_GROWTH_BYTES = 16 * 2**20  # caches of allocators fill in the first minutes
_MAX_GROWTH_SHARE = 0.05


class Growth(NamedTuple):
    """Bytes: the medians of the second quarter of the samples, and of the last."""

    before: float
    after: float

    @property
    def share(self) -> float:
        """Of what it was before."""
        return self.after / self.before - 1

    @property
    def is_too_much(self) -> bool:
        """Whether the service takes more and more."""
        return self.after - self.before > max(_MAX_GROWTH_BYTES, _MAX_GROWTH_SHARE * self.before)


def growth(samples: Sequence[float]) -> Growth | None:
    """From samples in bytes, in order; None where they are too few."""
    if len(samples) < MIN_SAMPLES:
        return None
    quarter = len(samples) // 4
    return Growth(statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:]))


def resident_bytes(pid: int) -> float:
    """Of a process and its children: UCX lives in one of its own. Raises psutil.Error where it is gone."""
    process = psutil.Process(pid)
    return float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
