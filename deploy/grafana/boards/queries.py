"""Queries that several dashboards make."""

TRACK = 'track=~"$track"'
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def quantiles(histogram: str, labels: str) -> dict[str, str]:
    """p50, p95 and p99 of a histogram."""
    rate = f"sum by (le) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return {legend: f"histogram_quantile({q}, {rate})" for legend, q in _QUANTILES}


def rate(counter: str, labels: str, by: str = "") -> str:
    """Events per second."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{{{labels}}}[$__rate_interval]))"


def total(gauge: str, labels: str, by: str = "") -> str:
    """A gauge over all that have it."""
    return f"sum{f' by ({by})' if by else ''} ({gauge}{{{labels}}})"
