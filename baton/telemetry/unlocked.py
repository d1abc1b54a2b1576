"""Prometheus metrics written by a single thread, for what is counted at every request.

prometheus_client's own metrics take a lock and repeat checks at every increment, which made up a tenth of a router's
work for a tiny request. These are plain numbers, converted to the library's metric families at each scrape.
"""

import time
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Self

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString


class Unlocked(Collector):
    """A metric: a single series or, if it has labels, the parent of the series that `labels` returns."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self.name, self.documentation, self.labelnames = name, documentation, tuple(labelnames)
        self._children: dict[tuple[str, ...], Self] = {}
        if registry is not None:
            registry.register(self)

    def labels(self, *values: str) -> Self:
        """Return the series with these label values, given in the order of `labelnames`."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._child()
        return child

    def describe(self) -> list[Metric]:
        """Return name and type, for the registry."""
        return [self._family()]

    def collect(self) -> list[Metric]:
        """Return all samples."""
        family = self._family()
        for labels, series in list(self._children.items()) if self.labelnames else [((), self)]:
            series._add_to(family, labels)
        return [family]

    @abstractmethod
    def _child(self) -> Self: ...

    @abstractmethod
    def _family(self) -> Metric:
        """Return the library's metric family, without samples yet."""

    @abstractmethod
    def _add_to(self, family: Any, labels: tuple[str, ...]) -> None: ...


class Counter(Unlocked):
    """A value that only goes up."""

    _value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which must not be negative."""
        self._value += amount

    def _child(self) -> Self:
        return type(self)(self.name, self.documentation, registry=None)

    def _family(self) -> Metric:
        return CounterMetricFamily(self.name, self.documentation, labels=self.labelnames)

    def _add_to(self, family: Any, labels: tuple[str, ...]) -> None:
        family.add_metric(labels, self._value)


class Histogram(Unlocked):
    """A histogram."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        registry: CollectorRegistry | None = REGISTRY,
        *,
        buckets: Sequence[float],
    ) -> None:
        """`buckets` are upper bounds in ascending order, without infinity."""
        self._bounds = [float(bound) for bound in buckets]  # ints are slower to compare
        self._counts = [0] * (len(buckets) + 1)
        self._exemplars: list[Exemplar | None] = [None] * (len(buckets) + 1)
        self._sum = 0.0
        super().__init__(name, documentation, labelnames, registry)

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Add an observation. `exemplar` comes from `exposition.exemplar`, and is not checked here."""
        bucket = bisect_left(self._bounds, amount)
        self._counts[bucket] += 1
        self._sum += amount
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(exemplar, amount, time.time())

    def _child(self) -> Self:
        return type(self)(self.name, self.documentation, registry=None, buckets=self._bounds)

    def _family(self) -> Metric:
        return HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)

    def _add_to(self, family: Any, labels: tuple[str, ...]) -> None:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), self._exemplars, strict=True)), self._sum)
