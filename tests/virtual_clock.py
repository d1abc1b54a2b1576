"""An event loop in which nothing takes time but waiting, and waiting is over at once: for timers, without sockets."""

import asyncio
from collections.abc import Callable, Coroutine


class Clock(asyncio.SelectorEventLoop):
    """`now` may be put forward: then this process was away."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector.select = self._skip

    def time(self) -> float:
        return self.now

    def _skip(self, timeout: float | None = None) -> list:
        self.now += timeout or 0.0
        return []


def run(main: Callable[[Clock], Coroutine]) -> None:
    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main(clock))
