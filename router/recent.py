"""Statistics of this router's last five minutes in slots of two seconds, for the dashboard.

Times are counted in buckets with bounds 10 % apart, so percentiles are accurate to 5 %, and the slots of several
routers can be added.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

SLOT_S = 2
NUM_SLOTS = 150
_SMALLEST_S = 1e-4
_GROWTH = math.log(1.1)
_SHARES = (0.5, 0.95, 0.99)


class Slot(msgspec.Struct):
    """What happened in two seconds. Keys of `ttft` and `tpot` are buckets; those of `flows` are `prefill>decode`."""

    requests: int = 0
    errors: int = 0  # status 5xx, except 503
    refused: int = 0  # status 429 or 503: the client may try again
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft: dict[int, int] = {}
    tpot: dict[int, int] = {}
    flows: dict[str, tuple[int, int]] = {}  # (bytes, transfers)

    def add(self, other: "Slot") -> None:
        """Add the counts of a slot of another router, or of another time."""
        for name in ("requests", "errors", "refused", "prompt_tokens", "cached_tokens", "output_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.ttft, other.ttft), (self.tpot, other.tpot)):
            for bucket, count in theirs.items():
                mine[bucket] = mine.get(bucket, 0) + count
        for pair, (num_bytes, num) in other.flows.items():
            before = self.flows.get(pair, (0, 0))
            self.flows[pair] = before[0] + num_bytes, before[1] + num


class Recent:
    """The last NUM_SLOTS slots, including the current one. Request handling counts; the admin port reads `slots`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: deque[Slot] = deque([Slot()], maxlen=NUM_SLOTS)
        self._number = int(clock() // SLOT_S)

    def slots(self) -> list[Slot]:
        """Return the slots, latest first. The first one is not complete yet."""
        self._current()
        return list(reversed(self._slots))

    def ttft(self, seconds: float) -> None:
        """Count the time to first token of a choice."""
        _count(self._current().ttft, seconds)

    def tpot(self, seconds: float) -> None:
        """Count the time per output token of a choice that has ended."""
        _count(self._current().tpot, seconds)

    def request(self, status: int, num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int) -> None:
        """Count a request that has ended."""
        slot = self._current()
        slot.requests += 1
        slot.refused += status in (429, 503)
        slot.errors += status >= 500 and status != 503
        slot.prompt_tokens += num_prompt_tokens
        slot.output_tokens += num_output_tokens
        slot.cached_tokens += num_cached_tokens

    def transfer(self, prefill: str, decode: str, num_bytes: int) -> None:
        """Count a KV transfer from a prefill node to a decode node."""
        flows, pair = self._current().flows, f"{prefill}>{decode}"
        before = flows.get(pair, (0, 0))
        flows[pair] = before[0] + num_bytes, before[1] + 1

    def _current(self) -> Slot:
        now = int(self._clock() // SLOT_S)
        if now > self._number:
            self._slots.extend(Slot() for _ in range(min(now - self._number, NUM_SLOTS)))
            self._number = now
        return self._slots[-1]


def merged(slots: Iterable[Slot]) -> Slot:
    """Return the sum of several slots."""
    total = Slot()
    for slot in slots:
        total.add(slot)
    return total


def percentiles_ms(buckets: dict[int, int]) -> list[float | None]:
    """Return p50, p95 and p99 in milliseconds; each is None if nothing was counted."""
    total = sum(buckets.values())
    if not total:
        return [None for _ in _SHARES]
    return [_ms(_at(buckets, min(math.ceil(share * total), total) - 1)) for share in _SHARES]


def to_json(slots: list[Slot]) -> list[Any]:
    """Convert slots to JSON values, for another router to read with `from_json`."""
    return [msgspec.to_builtins(slot, str_keys=True) for slot in slots]


def from_json(value: Any) -> list[Slot]:
    """Convert the slots of another router. Raises msgspec.ValidationError for malformed ones."""
    return msgspec.convert(value, list[Slot], strict=False)[:NUM_SLOTS]


def _at(buckets: dict[int, int], rank: int) -> int:
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank < 0:
            return bucket
    raise AssertionError("unreachable")


def _ms(bucket: int) -> float:
    return float(f"{1000 * _SMALLEST_S * math.exp((bucket + 0.5) * _GROWTH):.3g}")


def _count(buckets: dict[int, int], seconds: float) -> None:
    bucket = int(math.log(max(seconds, _SMALLEST_S) / _SMALLEST_S) / _GROWTH)
    buckets[bucket] = buckets.get(bucket, 0) + 1


RECENT = Recent()
