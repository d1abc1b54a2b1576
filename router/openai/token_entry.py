"""A token of an answer or an echo with its log-probabilities, before a format makes JSON of it."""

import msgspec

_MIN_LOGPROB = -9999.0  # JSON has no infinity


class TokenEntry(msgspec.Struct, frozen=True):
    """A token with its logprobs."""

    token: bytes
    logprob: float | None  # None of a prompt's first token: nothing comes before it
    top: list[tuple[bytes, float]]
    offset: int  # in the choice's text, in characters


def finite(logprob: float) -> float:
    """The log-probability, or the lowest number that stands for minus infinity in JSON."""
    return max(logprob, _MIN_LOGPROB)
