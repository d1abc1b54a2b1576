"""Prometheus metrics that one thread alone writes: what is counted for every request.

The library takes a lock, and looks again at what cannot have changed, at every count, which was a tenth of all that a
router did for a tiny request. Reading is the library's own, from any thread.
"""

import time
from bisect import bisect_left

import prometheus_client
from prometheus_client.samples import Exemplar


class Counter(prometheus_client.Counter):
    """Of one series, or a parent of those that `labels` makes."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """`amount` is not negative; exemplars are for histograms."""
        self._value._value += amount


class Gauge(prometheus_client.Gauge):
    """The same."""

    def inc(self, amount: float = 1) -> None:
        """Of what goes up and down."""
        self._value._value += amount

    def dec(self, amount: float = 1) -> None:
        """The other way."""
        self._value._value -= amount


class Histogram(prometheus_client.Histogram):
    """The same."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """`exemplar` is a sane one (`exposition.exemplar`)."""
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        bucket._value += 1
        self._sum._value += amount
        if exemplar is not None:
            bucket._exemplar = Exemplar(exemplar, amount, time.time())
