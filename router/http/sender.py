"""An answer sent from plain functions: at once where the connection takes it, else from a bounded backlog.

An output token comes in a callback of the event loop. Waking a task for each of hundreds of streams costs more than
the write itself, and there is nothing to wait for unless the client reads too slowly. Then a task waits, and what comes
meanwhile is kept until it goes on. Where that becomes too much, whoever makes it is told to pause, until the client
has taken all of it.
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
    """Whoever makes the body of a response, as it comes."""

    def pause(self) -> None:
        """The client reads too slowly: make no more, though a little may still come."""

    def resume(self) -> None:
        """The client has taken all that there was: go on."""

    def drop(self) -> None:
        """The client has been given up: make no more at all."""


class Sender:
    """One response. `on_broken` is called once if the client does not take it."""

    def __init__(self, outlet: Outlet, on_broken: Callable[[], None]) -> None:
        self._outlet = outlet
        self._on_broken = on_broken
        self.source: Source | None = None
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self._held = False
        self._opening: bytes | None = None  # of the body, while status and headers are not written yet
        self.started = False
        self.ended = False
        self.broken = False

    def start(self, status: int, headers: list[Header], opening: bytes = b"") -> None:
        """Status and headers, and how the body begins. They go out with what follows at once, or without it."""
        self.started, self._opening = True, opening
        self._hold(True)
        self._outlet.start(status, headers)
        asyncio.get_running_loop().call_soon(self._start_alone)

    def send(self, status: int, headers: list[Header], body: bytes) -> None:
        """A whole answer, in one write."""
        self.started = True
        self._outlet.start(status, headers)
        self.write(body, more=False)

    def write(self, data: bytes, *, more: bool = True) -> None:
        """A part of the body; the last one where not `more`."""
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
        """What sends a text between these two; False of it, and nothing is sent: not now. None: there is none."""
        return self._outlet.inserter(before, after)

    async def flush(self) -> None:
        """Return when the backlog is sent, or the client has been given up."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Let go of whoever made the body; nothing comes any more."""
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
        if self.source is not None and not self._paused and not self.ended:
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
        _log.exception("cannot send")
        self._break()

    def _break(self) -> None:
        self.broken = True
        self._hold(True)
        self._backlog.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._on_broken()
        if self.source is not None:
            self.source.drop()


def _nothing() -> None:
    pass
