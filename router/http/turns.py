"""Large bodies take turns: to read JSON of a megabyte takes ten milliseconds and more, in which all streams stand."""

import asyncio
import time

from baton.errors import Overloaded

LARGE_BYTES = 2**18  # of a body
PAUSES = 24  # as long as reading one takes, before the next is read
MAX_WAITING_BYTES = 64 * 2**20


class Turns:
    """The line of large bodies of one router process: one is read at a time, with a pause after it."""

    def __init__(self) -> None:
        self.num_waiting_bytes = 0
        self._lock = asyncio.Lock()
        self._next_s = 0.0

    async def take(self, num_bytes: int) -> None:
        """Return when a body of so many bytes may be read. Raises Overloaded where too much is before it."""
        if self.num_waiting_bytes > MAX_WAITING_BYTES:
            raise Overloaded("Too many large bodies at present")
        self.num_waiting_bytes += num_bytes
        try:
            async with self._lock:
                if (wait_s := self._next_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                asyncio.get_running_loop().call_soon(self._pause, time.monotonic())
        finally:
            self.num_waiting_bytes -= num_bytes

    def _pause(self, began_s: float) -> None:
        """Called when the event loop gets on after a body: how long it took decides when the next may be read."""
        now_s = time.monotonic()
        self._next_s = now_s + PAUSES * (now_s - began_s)


TURNS = Turns()
