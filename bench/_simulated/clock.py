"""Virtual time: things happen in order, and nothing takes time unless it says so."""

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """A queue of what happens when. Times in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now_s(self) -> float:
        """The time in seconds."""
        return self.now_ms / 1000

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        """Call then; at once where that is past. What is due at the same time keeps its order."""
        heapq.heappush(self._events, (max(when_ms, self.now_ms), next(self._order), call))

    def step(self) -> bool:
        """Have the next thing happen; False where there is none."""
        if not self._events:
            return False
        self.now_ms, _, call = heapq.heappop(self._events)
        call()
        return True
