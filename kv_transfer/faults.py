"""Named faults for tests, off unless armed: by a test, or by `BATON_FAULTS=name:times,name` before a node starts.

corrupt_message      a sender flips one bit of a message, anywhere in it, after its digest was taken; or, where blocks
                     are fetched from a GPU, names another block than one that was digested
crash_mid_transfer   a sender is killed after its first message
freeze_mid_transfer  a sender is stopped after its first message, until somebody continues it
crash_before_commit  a sender is killed when all messages are out
hold_message         a sender keeps a message back for a while
hold_commit          a sender waits for a while when all messages are out
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
    """How often each fault is still to happen."""

    def __init__(self, spec: str = "") -> None:
        self._armed: dict[str, int] = {}
        for part in filter(None, spec.split(",")):
            name, _, times = part.partition(":")
            self.arm(name, int(times or 1))

    def arm(self, name: str, times: int = 1) -> None:
        """Let the fault happen the next `times` times."""
        if name not in NAMES:
            raise ValueError(f"no fault is named {name!r}; there are {', '.join(sorted(NAMES))}")
        self._armed[name] = times

    def fires(self, name: str) -> bool:
        """Whether the fault happens now; counts it."""
        left = self._armed.get(name, 0)
        if left:
            self._armed[name] = left - 1
            _log.warning("fault %s happens now", name)
        return left > 0

    async def hold(self, name: str, is_over: Callable[[], bool]) -> None:
        """Wait for some seconds, if the fault happens now, or until it makes no difference any more."""
        until_s = time.monotonic() + _HELD_S
        if self.fires(name):
            while time.monotonic() < until_s and not is_over():  # noqa: ASYNC110 - a test is not in a hurry
                await asyncio.sleep(_POLL_S)

    def flip(self, views: list[memoryview]) -> list[memoryview]:
        """A copy in which one bit, drawn at random, is another."""
        damaged = bytearray(b"".join(views))
        bit = random.randrange(8 * len(damaged))  # noqa: S311
        damaged[bit // 8] ^= 1 << bit % 8
        return [memoryview(damaged)]

    def misplace(self, places: list[int], num_blocks: int) -> list[int]:
        """A copy in which one place, drawn at random, is another."""
        at, other = random.randrange(len(places)), random.randrange(1, num_blocks)  # noqa: S311
        first = places[at] // num_blocks * num_blocks  # of its layer group
        return [*places[:at], first + (places[at] - first + other) % num_blocks, *places[at + 1 :]]

    def strike(self, *names: str) -> None:
        """Kill or stop this process, without any clean-up, if one of the faults happens now."""
        for name in names:
            if self.fires(name):
                os.kill(os.getpid(), _SIGNALS[name])


FAULTS = Faults(os.environ.get("BATON_FAULTS", ""))
