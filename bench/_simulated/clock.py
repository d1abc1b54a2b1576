"""Virtual time: events happen in order, and only explicit delays take time."""

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """A queue of timed events. Times are in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now_s(self) -> float:
        """The present time in seconds."""
        return self.now_ms / 1000

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        """Schedule a call; at once if the time is past. Calls for the same time keep their order."""
        heapq.heappush(self._events, (max(when_ms, self.now_ms), next(self._order), call))

    def step(self) -> bool:
        """Run the next event; return False if there is none."""
        if not self._events:
            return False
        self.now_ms, _, call = heapq.heappop(self._events)
        call()
        return True
