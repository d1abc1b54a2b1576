"""A process's metrics as Prometheus reads them, each of ours with the process's own labels.

The labels are added when somebody asks, so nobody who counts has to know who he is. OpenMetrics, with exemplars, goes
to those who accept it.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Metric, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_PREFIX = "baton_"
_MAX_EXEMPLAR_CHARS = 128  # of names and values together, as OpenMetrics has it

disable_created_metrics()  # type: ignore[no-untyped-call] # a series beside every counter, which nobody reads
_BUILD = Gauge("baton_build_info", "Always 1; the version of Baton that runs", ["version"])
_BUILD.labels(version("baton")).set(1)


class Exposition:
    """What one process exposes."""

    def __init__(self, labels: Mapping[str, str] | None = None, registry: CollectorRegistry = REGISTRY) -> None:
        """`labels`, as {role, node_id}, go to every metric of ours that has none of that name itself."""
        self._source = _Labelled(dict(labels or {}), registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics now, and their content type, in the format that an `Accept` header asks for."""
        generate, content_type = choose_encoder(accept)
        return generate(self._source), content_type


class _Labelled(Collector):
    def __init__(self, labels: dict[str, str], registry: CollectorRegistry) -> None:
        self._labels, self._registry = labels, registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            if metric.name.startswith(_PREFIX):
                metric.samples = [s._replace(labels={**self._labels, **s.labels}) for s in metric.samples]
            yield metric


def exemplar(request_id: str) -> dict[str, str] | None:
    """The request that an observation came from; None where its id is too long to be named."""
    labels = {"request_id": request_id}
    return labels if len("request_id") + len(request_id) <= _MAX_EXEMPLAR_CHARS else None
