"""When requests come, in open loop: independently of how fast they are answered.

Poisson arrivals have exponential gaps. Bursts have gaps of a gamma distribution of shape 1 / burstiness: the same
rate, in clusters (1 is Poisson, 4 and more is bursty, 0 is a metronome).
"""

import random
from collections.abc import Iterator


def times(rate: float, burstiness: float, source: random.Random) -> Iterator[float]:
    """Seconds since the start, without end; `rate` per second."""
    at_s = 0.0
    while True:
        yield at_s
        if burstiness:
            at_s += source.gammavariate(1 / burstiness, burstiness / rate)
        else:
            at_s += 1 / rate
