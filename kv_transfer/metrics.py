"""What transfers count. Senders count bytes and seconds of accepted transfers; both sides count failures."""

from prometheus_client import Counter, Histogram

BYTES = Counter("baton_kv_transfer_bytes", "KV bytes shipped in accepted transfers", ["transport"])
SECONDS = Histogram(
    "baton_kv_transfer_seconds",
    "From the end of the prefill to the accepted commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
FAILURES = Counter("baton_kv_transfer_failures", "Transfers that ended in recomputing", ["reason"])
FALLBACKS = Counter(
    "baton_kv_transport_fallbacks",
    "Connections for which a better transport failed, by the one that did",
    ["transport"],
)
RESTARTS = Counter("baton_kv_transport_restarts", "UCX processes that died, and took the transfers under way with them")
