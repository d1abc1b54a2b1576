"""A token of an answer or an echo with its log-probabilities, before it is formatted as JSON."""

import msgspec

_MIN_LOGPROB = -9999.0  # JSON has no infinity


class TokenEntry(msgspec.Struct, frozen=True):
    """A token with its log-probability and those of the likeliest tokens at its position."""

    token: bytes
    logprob: float | None  # None for a prompt's first token, which nothing precedes
    top: list[tuple[bytes, float]]
    offset: int  # in the choice's text, in characters


def finite(logprob: float) -> float:
    """Return the log-probability, with minus infinity replaced by a number that JSON can represent."""
    return max(logprob, _MIN_LOGPROB)
