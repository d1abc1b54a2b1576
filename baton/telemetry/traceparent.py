"""The W3C header `traceparent`, which names a request's trace and the span above it."""

import re
import secrets
from typing import NamedTuple

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = 1


class TraceParent(NamedTuple):
    """The header's fields."""

    trace_id: int
    span_id: int
    sampled: bool


def is_sane(text: str) -> bool:
    """Whether `text` is a valid header value."""
    return _FORM.fullmatch(text) is not None


def parse(text: str) -> TraceParent | None:
    """Parse a header value; None if it is invalid."""
    if not is_sane(text):
        return None
    _, trace_id, span_id, flags = text.split("-")
    return TraceParent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))


def child(parent: str) -> str:
    """Return the `traceparent` of a new span under `parent`, or of a new trace if that is empty or invalid."""
    known = parse(parent)
    trace_id = known.trace_id if known else secrets.randbits(127) + 1
    sampled = known.sampled if known else True
    return f"00-{trace_id:032x}-{secrets.randbits(63) + 1:016x}-{int(sampled):02x}"
