"""The memory of services, and whether it grows: the rule of `baton chaos` and `baton loadtest`.

Memory always grows while caches fill, so the first quarter of the samples is left out.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import psutil

MIN_SAMPLES = 12
_MAX_GROWTH_BYTES = 16 * 2**20  # allocators' caches fill in the first minutes
_MAX_GROWTH_SHARE = 0.05


class Growth(NamedTuple):
    """The median of the second quarter of the samples, and of the last quarter, in bytes."""

    before: float
    after: float

    @property
    def share(self) -> float:
        """The growth relative to `before`."""
        return self.after / self.before - 1

    @property
    def is_too_much(self) -> bool:
        """Whether the growth exceeds the limit."""
        return self.after - self.before > max(_MAX_GROWTH_BYTES, _MAX_GROWTH_SHARE * self.before)


def growth(samples: Sequence[float]) -> Growth | None:
    """Return the growth from samples in bytes, in order of time; None if there are too few."""
    if len(samples) < MIN_SAMPLES:
        return None
    quarter = len(samples) // 4
    return Growth(statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:]))


def resident_bytes(pid: int) -> float:
    """Return the memory of a process and its children (UCX runs in one). Raises psutil.Error if it has ended."""
    process = psutil.Process(pid)
    return float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
