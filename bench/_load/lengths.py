"""How long prompts and answers are: `128`, `uniform:64-512`, or `lognormal:MEDIAN,SIGMA` (of the natural logarithm)."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from baton.errors import ConfigError

MAX_TOKENS = 1_000_000
_NUMBER = r"(\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens, as its user wrote it."""

    text: str
    mean: float
    draw: Callable[[random.Random], int]


def parse(text: str) -> Lengths:
    """Raises ConfigError for what is none of the three forms, or out of bounds."""
    if found := re.fullmatch(r"\d+", text):
        number = _bounded(text, int(found[0]))
        return Lengths(text, number, lambda _: number)
    if found := re.fullmatch(r"uniform:(\d+)-(\d+)", text):
        low, high = _bounded(text, int(found[1])), _bounded(text, int(found[2]))
        if low > high:
            raise ConfigError(f"{text}: the first length is above the second")
        return Lengths(text, (low + high) / 2, lambda draw: draw.randint(low, high))
    if found := re.fullmatch(rf"lognormal:{_NUMBER},{_NUMBER}", text):
        return _lognormal(text, float(found[1]), float(found[2]))
    raise ConfigError(f"{text}: a length is N, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA")


def _lognormal(text: str, median: float, sigma: float) -> Lengths:
    _bounded(text, round(median))
    if sigma > 4.0:
        raise ConfigError(f"{text}: SIGMA is 4 at most")
    longest = min(round(20 * median), MAX_TOKENS)  # a tail that no server takes is cut

    def draw(source: random.Random) -> int:
        return min(max(round(source.lognormvariate(math.log(median), sigma)), 1), longest)

    return Lengths(text, min(median * math.exp(sigma * sigma / 2), longest), draw)


def _bounded(text: str, number: int) -> int:
    if not 1 <= number <= MAX_TOKENS:
        raise ConfigError(f"{text}: a length is between 1 and {MAX_TOKENS} tokens")
    return number
