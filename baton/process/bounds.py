"""Types for argparse: numbers with bounds, so that 0, a negative number, NaN or infinity ends in one line of text."""

import argparse
import dataclasses
import math
from collections.abc import Callable

MANY = 1_000_000


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Parses an int or a float from `least` to `most`; `kind` is also what `--help` shows."""

    kind: Callable[[str], float]
    least: float
    most: float
    above: bool  # whether `least` itself is excluded

    def __call__(self, text: str) -> float:
        """Return the number. Raises ArgumentTypeError if it is none, or out of bounds."""
        try:
            number = self.kind(text)
        except ValueError:
            number = math.nan
        if self.least <= number <= self.most and not (self.above and number == self.least):
            return number
        kind, start = "a whole number" if self.kind is int else "a number", "above" if self.above else "from"
        until = "up to" if self.above else "to"
        raise argparse.ArgumentTypeError(f"{text[:20]}: expected {kind} {start} {self.least:,} {until} {self.most:,}")


def whole(least: int = 1, most: int = MANY) -> Bounded:
    """Return the type of a flag that takes a whole number."""
    return Bounded(int, least, most, above=False)


def real(least: float = 0, most: float = MANY) -> Bounded:
    """Return the type of a flag that takes any number."""
    return Bounded(float, least, most, above=False)


def positive(most: float = MANY) -> Bounded:
    """Return the type of a flag that takes any number above 0."""
    return Bounded(float, 0, most, above=True)
