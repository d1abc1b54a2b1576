"""How long a stream that has begun waits for its KV transfer: as long as recomputing the KV would take, 1 s at least.

A transfer may make progress all the time and still be late, on a slow link or behind other transfers, and nobody knows
by how much. Giving up after the time that recomputing takes costs at most twice the better of the two (ski rental).
"""

import asyncio
import math
from collections.abc import Callable

LEAST_S = 1.0
TICK_S = 0.125
SOON_S = 0.4  # a prompt that has waited longer for its grant may have given up its blocks, and is then recomputed first


class Patience:
    """The timer of one attempt. It counts ticks of the event loop, so a stall of this process is a single tick."""

    def __init__(self, compute_s: float, on_end: Callable[[], None]) -> None:
        """`compute_s`: the time that recomputing all of the KV would take. `on_end` is called when patience ends."""
        self._compute_s = compute_s
        self._ticks_left = math.ceil(max(compute_s, LEAST_S) / TICK_S)
        self._on_end: Callable[[], None] | None = on_end
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_granted = False
        self._begun_s: float | None = None

    def granted(self, queue_s: float) -> None:
        """Note that the decode node has granted blocks for the KV. Waiting for them does not count.

        `queue_s`: the time until the prefill node would begin to compute this prompt again.
        """
        self._is_granted = True
        if self._begun_s is not None:
            if self._loop.time() - self._begun_s >= SOON_S:
                self._ticks_left += math.ceil((queue_s + self._compute_s) / TICK_S)
            self._begin()

    def begun(self) -> None:
        """Note that the stream has begun: its first token has gone to the client."""
        self._begun_s = self._loop.time()
        if self._is_granted:
            self._begin()

    def stop(self) -> None:
        """Stop the timer: the KV is there, or no longer needed. Idempotent."""
        self._on_end = None
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        if self._on_end is not None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticks_left -= 1
        if self._ticks_left:
            self._begin()
        elif self._on_end is not None:
            self._on_end()
