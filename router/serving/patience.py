"""How long a stream that has begun waits for its KV: as long as computing that again would take, a second at least.

What is shipped may move all the time and still be late, on a slow link or behind others, and nobody knows for how long.
Who gives up after as long as the other way takes has lost no more than twice the better of the two.
"""

import asyncio
import math
from collections.abc import Callable

LEAST_S = 1.0
TICK_S = 0.125
SOON_S = 0.4  # a grant that comes later waited for blocks, and the prompt may have to be computed again


class Patience:
    """The clock of one attempt. It counts ticks of the event loop, so that a stall of this process counts as one."""

    def __init__(self, compute_s: float, on_end: Callable[[], None]) -> None:
        """`compute_s`: how long it would take to compute all of the KV again."""
        self._ticks_left = math.ceil(max(compute_s, LEAST_S) / TICK_S)
        self._on_end: Callable[[], None] | None = on_end
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_granted = False
        self._begun_s = -math.inf

    def granted(self) -> None:
        """The decode node has blocks for the KV."""
        self._is_granted = True
        if self._loop.time() - self._begun_s < SOON_S:
            self._begin()

    def begun(self) -> None:
        """The stream has begun: its first token is with the client."""
        self._begun_s = self._loop.time()
        if self._is_granted:
            self._begin()

    def stop(self) -> None:
        """The KV is there, or nobody waits for it any more. Idempotent."""
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
