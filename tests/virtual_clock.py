"""An event loop in which nothing takes time but waiting, and waiting is over at once: for timers, without sockets."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Clock(asyncio.SelectorEventLoop):
    """`now` may be put forward: then this process was away."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector.select, self._look = self._skip, self._selector.select

    def time(self) -> float:
        return self.now

    def _skip(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return self._look(0)


def run(main: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main(clock))
