"""Arrival times for an open loop, where requests arrive no matter how fast they are answered.

Poisson arrivals have exponential gaps. Bursty arrivals have gamma-distributed gaps of shape 1 / burstiness: the same
rate, in clusters (1 is Poisson, 4 or more is bursty, 0 gives even gaps).
"""

import random
from collections.abc import Iterator


def times(rate: float, burstiness: float, source: random.Random) -> Iterator[float]:
    """Yield arrival times in seconds since the start, without end, at `rate` per second."""
    at_s = 0.0
    while True:
        yield at_s
        if burstiness:
            at_s += source.gammavariate(1 / burstiness, burstiness / rate)
        else:
            at_s += 1 / rate
