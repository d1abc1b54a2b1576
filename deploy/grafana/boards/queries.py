"""Queries that several dashboards use."""

TRACK = 'track=~"$track"'
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def quantiles(histogram: str, labels: str) -> dict[str, str]:
    """Return queries for p50, p95 and p99 of a histogram."""
    rate = f"sum by (le) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return {legend: f"histogram_quantile({q}, {rate})" for legend, q in _QUANTILES}


def rate(counter: str, labels: str, by: str = "") -> str:
    """Return a query for events per second."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{{{labels}}}[$__rate_interval]))"


def total(gauge: str, labels: str, by: str = "") -> str:
    """Return a query for the sum of a gauge."""
    return f"sum{f' by ({by})' if by else ''} ({gauge}{{{labels}}})"
