"""Time that passes as fast as there is nothing to do."""

import asyncio
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when there is nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s, select = 1000.0, self._selector.select

        def pass_time(timeout: float | None = None) -> Any:
            self._now_s += timeout or 0.0
            return select(0)

        self._selector.select = pass_time

    def time(self) -> float:
        return self._now_s

    def stand_still(self, seconds: float) -> None:
        """As a process does that gets no CPU."""
        self._now_s += seconds
