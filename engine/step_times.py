"""How long the last steps took: one row per step in a ring buffer, from which a request's decoding can be summed up
without any cost per token."""

from collections.abc import Iterator

import numpy as np

from baton.telemetry.timeline import Event

CAPACITY = 2**16  # steps
NUM_OUTLIERS = 5
OUTLIER = 3.0  # times the median
_ALMOST = 1 - 1e-9


class StepTimes:
    """Written on the step thread, read on any: at worst a reader misses the row that is being written."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.num_steps = 0
        self._rows = np.zeros((capacity, 3))  # [N, (start_s, duration_s, requests)]

    def note(self, start_s: float, duration_s: float, num_requests: int) -> None:
        """Record a step."""
        self._rows[self.num_steps % len(self._rows)] = start_s, duration_s, num_requests
        self.num_steps += 1

    def events(self, first: int, last: int) -> Iterator[Event]:
        """Yield steps `[first, last)` as one event, and each of the slowest outliers among them as another."""
        last, capacity = min(last, self.num_steps), len(self._rows)
        known = np.arange(max(first, self.num_steps - capacity, 0), last)
        if not len(known):
            return
        rows = self._rows[known % capacity]
        start_s, duration_s = rows[:, 0], rows[:, 1]
        ordered = np.sort(duration_s)  # a tenth of what numpy.percentile takes
        p50_s, p99_s = float(ordered[len(ordered) // 2]), float(ordered[int(0.99 * len(ordered))])
        yield Event(
            "decode steps",
            float(start_s[0]),
            float(start_s[-1] + duration_s[-1]),
            {
                "num_steps": last - first,
                "p50_ms": round(1000 * p50_s, 3),
                "p99_ms": round(1000 * p99_s, 3),
                "max_ms": round(1000 * float(ordered[-1]), 3),
                "mean_batch": round(float(rows[:, 2].mean()), 1),
            },
        )
        slow = (duration_s > max(OUTLIER * p50_s, ordered[-NUM_OUTLIERS:][0] * _ALMOST)).nonzero()[0]
        for at in slow[:NUM_OUTLIERS].tolist():
            end_s = float(start_s[at] + duration_s[at])
            yield Event("slow step", float(start_s[at]), end_s, {"step": int(known[at]) - first})
