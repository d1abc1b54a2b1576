"""Blocks for requests whose KV will be shipped: first come, first served, in a bounded queue.

The head of the queue asks the engine again whenever blocks came back; nobody overtakes it, so a long prompt is not
starved by short ones.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from baton.errors import Overloaded
from baton.node.load import LoadBoard

MAX_QUEUED = 256
_RETRY_S = 0.1  # blocks also come back in ways that nobody announces


class Reservations:
    """The queue."""

    def __init__(self, board: LoadBoard) -> None:
        self._board = board
        self._turn = asyncio.Lock()  # its waiters are served in order
        self._freed = asyncio.Event()

    async def take(self, reserve: Callable[[], Awaitable[bool]]) -> None:
        """Return once `reserve` was successful. Raises Overloaded where the queue is full."""
        if self._board.num_queued >= MAX_QUEUED:
            raise Overloaded("the queue for KV blocks is full")
        self._board.num_queued += 1
        try:
            async with self._turn:
                self._freed.clear()
                while not await reserve():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_RETRY_S):  # wait_for loses a cancel that meets the event
                            await self._freed.wait()
                    self._freed.clear()
        finally:
            self._board.num_queued -= 1

    def freed(self) -> None:
        """Blocks may have come back."""
        self._freed.set()
