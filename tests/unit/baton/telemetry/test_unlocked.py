"""Metrics written by a single thread expose the same as the library's own."""

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from baton.telemetry import unlocked
from baton.telemetry.exposition import Exposition, exemplar

BUCKETS = (0.1, 1.0, 10.0)


def page(kinds, values, accept=""):
    registry = CollectorRegistry()
    times = kinds.Histogram("baton_times", "Times", ["phase"], buckets=BUCKETS, registry=registry)
    seen = kinds.Counter("baton_seen", "Seen", registry=registry)
    sent = kinds.Counter("baton_sent", "Sent", ["to", "as"], registry=registry)
    kinds.Counter("baton_never", "Never", ["why"], registry=registry)
    for value in values:
        times.labels("a").observe(value)
        seen.inc()
        seen.inc(value)
        sent.labels("b", "" if value else "zero").inc(2)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        kinds.Counter("baton_seen", "Again", registry=registry)
    return Exposition({"role": "router"}, registry).render(accept)[0]


@given(values=st.lists(st.sampled_from([0.0, 0.1, 0.2, 1.0, 10.0, 11.0]) | st.floats(0, 1e6)))
def test_pages_equal_those_of_prometheus_client(values):
    assert page(unlocked, values) == page(prometheus_client, values)


@pytest.mark.parametrize("request_id", ["req-1", "x" * 128])
def test_exemplars_are_those_of_the_last_observation_in_a_bucket(request_id):
    registry = CollectorRegistry()
    times = unlocked.Histogram("baton_times", "Times", buckets=BUCKETS, registry=registry)
    times.observe(0.2, exemplar("before"))
    times.observe(0.3, exemplar(request_id))
    body = Exposition({}, registry).render("application/openmetrics-text; version=1.0.0")[0].decode()
    named = request_id if len(request_id) < 100 else "before"
    assert f'# {{request_id="{named}"}} {0.3 if named == request_id else 0.2}' in body
