"""Sends an answer from plain functions: at once if the connection takes it, otherwise through a bounded backlog.

Output tokens arrive in callbacks of the event loop. Waking a task for each of hundreds of streams would cost more than
the write itself, and waiting is needed only if the client reads too slowly. Then a task waits, and further parts are
kept in the backlog. If that gets too large, the source is asked to pause until the client has taken all of it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from router.http.error_format import Header
from router.http.outlet import Insert, Outlet

STALL_TIMEOUT_S = 60.0
MAX_BACKLOG_BYTES = 2**20
PAUSE_AT_PARTS = 256  # about as many tokens
PAUSE_AT_BYTES = MAX_BACKLOG_BYTES // 2

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Produces the body of a response."""

    def pause(self) -> None:
        """Stop producing: the client reads too slowly. A few more parts may still come."""

    def resume(self) -> None:
        """Continue: the client has taken everything."""

    def drop(self) -> None:
        """Stop for good: the client has been given up."""


class Sender:
    """Sends one response. `on_broken` is called once if the client does not take it."""

    def __init__(self, outlet: Outlet, on_broken: Callable[[], None]) -> None:
        self._outlet = outlet
        self._on_broken = on_broken
        self.source: Source | None = None
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self._held = False
        self._opening: bytes | None = None  # the body's beginning, while status and headers are not written yet
        self.started = False
        self.ended = False
        self.broken = False

    def start(self, status: int, headers: list[Header], opening: bytes) -> None:
        """Set status, headers and the beginning of the body. They are sent with the next part if it comes at once."""
        self.started, self._opening = True, opening
        self._hold(True)
        self._outlet.start(status, headers)
        asyncio.get_running_loop().call_soon(self._start_alone)

    def send(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send a whole answer, in one write."""
        self.started = True
        self._outlet.start(status, headers)
        self.write(body, more=False)

    def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body; without `more`, it is the last one."""
        self.ended = not more
        if self.broken:
            return
        if self._opening is not None:
            data, self._opening = self._opening + data, None
        if self._task is None and not self._outlet.is_full:
            self._write(data)
            return
        if self._task is None:
            self._task = asyncio.create_task(self._catch_up())
        self._keep(data)

    def inserter(self, before: bytes, after: bytes) -> Insert | None:
        """See `Outlet.inserter`."""
        return self._outlet.inserter(before, after)

    async def flush(self) -> None:
        """Wait until the backlog is sent, or the client has been given up."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Drop the references to the source. Nothing may be sent after that."""
        self.source, self._on_broken = None, _nothing

    def _write(self, data: bytes) -> None:
        try:
            self._outlet.write(data, more=not self.ended)
            self._hold(self._task is not None)
        except Exception:
            self._fail()

    def _hold(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self._outlet.hold(held)

    def _start_alone(self) -> None:
        if self._opening is not None:
            self.write(b"")

    def _keep(self, data: bytes) -> None:
        self._hold(True)
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._backlog_bytes > MAX_BACKLOG_BYTES:
            self._break()
        elif len(self._backlog) > PAUSE_AT_PARTS or self._backlog_bytes > PAUSE_AT_BYTES:
            self._pause()

    def _pause(self) -> None:
        if self.source is not None and not self._paused:
            self._paused = True
            self.source.pause()

    async def _catch_up(self) -> None:
        try:
            while self._backlog:
                await self._room()
                data, self._backlog, self._backlog_bytes = b"".join(self._backlog), [], 0
                self._write(data)
                if self._paused and not self.ended:
                    await self._room()
        except TimeoutError:
            self._break()
        finally:
            self._task = None
            self._hold(self.broken)
        self._resume()

    async def _room(self) -> None:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            await self._outlet.room()

    def _resume(self) -> None:
        if self._paused and not self.broken and self.source is not None:
            self._paused = False
            self.source.resume()

    def _fail(self) -> None:
        _log.exception("cannot send an answer")
        self._break()

    def _break(self) -> None:
        self.broken = True
        self._hold(True)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._on_broken()
        if self.source is not None:
            self.source.drop()


def _nothing() -> None:
    pass
