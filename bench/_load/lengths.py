"""Lengths of prompts and answers: `128`, `uniform:64-512`, or `lognormal:MEDIAN,SIGMA` (of the natural logarithm)."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from baton.errors import ConfigError

MAX_TOKENS = 1_000_000
_WHOLE = r"(\d{1,9})"
_NUMBER = r"(\d{1,9}(?:\.\d+)?)"


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens, and the text that it was parsed from."""

    text: str
    mean: float
    draw: Callable[[random.Random], int]


def parse(text: str) -> Lengths:
    """Parse one of the three forms. Raises ConfigError if it is another one, or out of bounds."""
    if match := re.fullmatch(_WHOLE, text):
        number = _bounded(text, int(match[0]))
        return Lengths(text, number, lambda _: number)
    if match := re.fullmatch(rf"uniform:{_WHOLE}-{_WHOLE}", text):
        low, high = _bounded(text, int(match[1])), _bounded(text, int(match[2]))
        if low > high:
            raise ConfigError(f"{text}: the first length must not exceed the second")
        return Lengths(text, (low + high) / 2, lambda draw: draw.randint(low, high))
    if match := re.fullmatch(rf"lognormal:{_NUMBER},{_NUMBER}", text):
        return _lognormal(text, float(match[1]), float(match[2]))
    raise ConfigError(f"{text!r} is not a length: expected N, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA")


def _lognormal(text: str, median: float, sigma: float) -> Lengths:
    _bounded(text, round(median))
    if sigma > 4.0:
        raise ConfigError(f"{text}: SIGMA must be at most 4")
    longest = min(round(20 * median), MAX_TOKENS)  # cut off a tail that no server would accept

    def draw(source: random.Random) -> int:
        return min(max(round(source.lognormvariate(math.log(median), sigma)), 1), longest)

    return Lengths(text, min(median * math.exp(sigma * sigma / 2), longest), draw)


def _bounded(text: str, number: int) -> int:
    if not 1 <= number <= MAX_TOKENS:
        raise ConfigError(f"{text}: lengths must be from 1 to {MAX_TOKENS} tokens")
    return number
