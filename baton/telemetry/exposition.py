"""Renders a process's metrics for Prometheus, adding the process's own labels to Baton's metrics.

The labels are added at each scrape, so the code that counts need not know them. Scrapers that accept OpenMetrics also
get exemplars.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Metric, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_PREFIX = "baton_"
_MAX_EXEMPLAR_CHARS = 128  # OpenMetrics' limit on the names and values of an exemplar together

disable_created_metrics()  # type: ignore[no-untyped-call] # no `_created` series beside every counter
_BUILD = Gauge("baton_build_info", "Always 1; the label is the version of Baton that runs", ["version"])
_BUILD.labels(version("baton")).set(1)


class Exposition:
    """The metrics of one process."""

    def __init__(self, labels: Mapping[str, str] | None = None, registry: CollectorRegistry = REGISTRY) -> None:
        """`labels`, such as {role, node_id}, are added to Baton's metrics; a metric's own labels take precedence."""
        self._source = _Labelled(dict(labels or {}), registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that the `Accept` header asks for."""
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
    """Return the exemplar that names an observation's request; None if the id is too long for one."""
    labels = {"request_id": request_id}
    return labels if len("request_id") + len(request_id) <= _MAX_EXEMPLAR_CHARS else None
