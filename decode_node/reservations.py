"""A bounded queue for KV blocks of requests whose KV will be sent here: first come, first served.

The head of the queue asks the engine again whenever blocks have been freed. Nothing overtakes it, so short prompts
cannot starve a long one.
"""

import asyncio
from collections.abc import Awaitable, Callable

from baton.errors import Overloaded
from baton.node.load import LoadBoard
from baton.process import tasks

MAX_QUEUED = 256
_RETRY_S = 0.1  # blocks can also become free without a call of `freed`


class Reservations:
    """The queue for KV blocks."""

    def __init__(self, board: LoadBoard) -> None:
        self._board = board
        self._turn = asyncio.Lock()  # a fair lock: its waiters are the queue
        self._freed = asyncio.Event()

    async def take(self, reserve: Callable[[], Awaitable[bool]]) -> None:
        """Wait in the queue until `reserve` succeeds. Raises Overloaded if the queue is full."""
        if self._board.num_queued >= MAX_QUEUED:
            raise Overloaded("the queue for KV blocks is full")
        self._board.num_queued += 1
        try:
            async with self._turn:
                while not await reserve():
                    await tasks.wait(self._freed, _RETRY_S)
                    self._freed.clear()
        finally:
            self._board.num_queued -= 1

    def freed(self) -> None:
        """Report that blocks may have been freed."""
        self._freed.set()
