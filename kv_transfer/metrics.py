"""Metrics of transfers. Senders record bytes and seconds of accepted transfers; both sides count failures."""

from prometheus_client import Counter, Histogram

BYTES = Counter("baton_kv_transfer_bytes", "KV bytes shipped in accepted transfers", ["transport"])
SECONDS = Histogram(
    "baton_kv_transfer_seconds",
    "Time from the end of the prefill to the accepted commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
FAILURES = Counter("baton_kv_transfer_failures", "Transfers that failed, so that their KV is recomputed", ["reason"])
FALLBACKS = Counter(
    "baton_kv_transport_fallbacks",
    "Connections that fell back to another transport, by the transport that failed",
    ["transport"],
)
RESTARTS = Counter("baton_kv_transport_restarts", "Restarts of the UCX process; each fails the transfers in flight")
