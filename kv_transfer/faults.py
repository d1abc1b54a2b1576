"""Fault injection for tests. Faults are armed by a test, or by `BATON_FAULTS=name:times,name` before a node starts.

corrupt_message      the sender flips a random bit in the copy of a message that it sends, not in what it digests; where
                     the receiver fetches blocks from a GPU, the sender names a wrong block instead
crash_mid_transfer   the sender kills itself (SIGKILL) after its next message
freeze_mid_transfer  the sender stops itself (SIGSTOP) after its next message, until somebody continues it
crash_before_commit  the sender kills itself when all messages are sent
hold_message         the sender delays a message by several seconds
hold_commit          the sender delays the commit by several seconds
"""

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_SIGNALS = {
    "crash_mid_transfer": signal.SIGKILL,
    "freeze_mid_transfer": signal.SIGSTOP,
    "crash_before_commit": signal.SIGKILL,
}
_HELD_S, _POLL_S = 10.0, 0.02
NAMES = frozenset({"corrupt_message", "hold_message", "hold_commit", *_SIGNALS})


class Faults:
    """Counts how many more times each fault is to happen."""

    def __init__(self, spec: str = "") -> None:
        self._armed: dict[str, int] = {}
        for part in filter(None, spec.split(",")):
            name, _, times = part.partition(":")
            self.arm(name, int(times or 1))

    def arm(self, name: str, times: int = 1) -> None:
        """Make the fault happen at its next `times` opportunities."""
        if name not in NAMES:
            raise ValueError(f"no fault is named {name!r}; choose one of {', '.join(sorted(NAMES))}")
        self._armed[name] = times

    def fires(self, name: str) -> bool:
        """Return whether the fault happens now, and if so count it."""
        left = self._armed.get(name, 0)
        if left:
            self._armed[name] = left - 1
            _log.warning("fault %s happens now", name)
        return left > 0

    async def hold(self, name: str, is_over: Callable[[], bool]) -> None:
        """If the fault happens now, wait for _HELD_S, or until `is_over`: then waiting makes no difference any more."""
        until_s = time.monotonic() + _HELD_S
        if self.fires(name):
            while time.monotonic() < until_s and not is_over():  # noqa: ASYNC110 - a test is not in a hurry
                await asyncio.sleep(_POLL_S)

    def flip(self, views: list[memoryview]) -> list[memoryview]:
        """Return a copy of the bytes, as one view, with one random bit flipped."""
        damaged = bytearray(b"".join(views))
        bit = random.randrange(8 * len(damaged))  # noqa: S311
        damaged[bit // 8] ^= 1 << bit % 8
        return [memoryview(damaged)]

    def misplace(self, places: list[int], num_blocks: int) -> list[int]:
        """Return a copy in which one random place is replaced by another one of the same layer group."""
        at, other = random.randrange(len(places)), random.randrange(1, num_blocks)  # noqa: S311
        first = places[at] // num_blocks * num_blocks  # of its layer group
        return [*places[:at], first + (places[at] - first + other) % num_blocks, *places[at + 1 :]]

    def strike(self, *names: str) -> None:
        """If one of these faults happens now, kill or stop this process without any clean-up."""
        for name in names:
            if self.fires(name):
                os.kill(os.getpid(), _SIGNALS[name])


FAULTS = Faults(os.environ.get("BATON_FAULTS", ""))
