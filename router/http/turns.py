"""Makes large bodies take turns: parsing a megabyte of JSON takes 10 ms and more, during which all streams pause."""

import asyncio
import time
from collections.abc import Callable

from baton.errors import Overloaded

LARGE_BYTES = 2**18  # a larger body has to wait for its turn
PAUSES = 24  # pause after each, as a multiple of the time that parsing it took
MAX_WAITING_BYTES = 64 * 2**20

Check = Callable[[bytes], object]
"""Raises an error for a body that must not be parsed."""


class Turns:
    """The queue of large bodies in one router process: one is parsed at a time, with a pause after it."""

    def __init__(self) -> None:
        self.num_waiting_bytes = 0
        self._lock = asyncio.Lock()
        self._next_s = 0.0

    async def take(self, body: bytes, check: Check) -> None:
        """Wait until a body that passes `check` may be parsed. Raises Overloaded if too much is waiting already.

        Those that do not pass are refused without a turn. `check` is called in a thread and should release the GIL.
        """
        num_bytes = len(body)
        if self.num_waiting_bytes > MAX_WAITING_BYTES:
            raise Overloaded("Too many large request bodies at present")
        self.num_waiting_bytes += num_bytes
        try:
            await asyncio.to_thread(check, body)
            async with self._lock:
                if (wait_s := self._next_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                asyncio.get_running_loop().call_soon(self._pause, time.monotonic())
        finally:
            self.num_waiting_bytes -= num_bytes

    def _pause(self, began_s: float) -> None:
        """Called when the event loop continues after a body: schedules the next by the time that this one took."""
        now_s = time.monotonic()
        self._next_s = now_s + PAUSES * (now_s - began_s)


TURNS = Turns()
