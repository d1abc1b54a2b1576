"""ASGI messages sent from plain functions: at once where the connection takes them, else from a bounded backlog.

An output token comes in a callback of the event loop. Waking a task for each of hundreds of streams costs more than
the write itself, and a server's `send` waits for nothing unless the client reads too slowly. So its coroutine is run
right here; only one that stops to wait is handed to a task, and what comes meanwhile is kept until it goes on. Where
that becomes too much, whoever makes it is told to pause, until the client has taken all of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]

STALL_TIMEOUT_S = 60.0
MAX_BACKLOG_BYTES = 2**20
PAUSE_AT_MESSAGES = 256  # about as many tokens
PAUSE_AT_BYTES = MAX_BACKLOG_BYTES // 2

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Whoever makes the body of a response, as it comes."""

    def pause(self) -> None:
        """The client reads too slowly: make no more, though a little may still come."""

    def resume(self) -> None:
        """It has taken all that there was."""


class Sender:
    """One response. `on_broken` is called once if the client does not take it."""

    source: Source | None = None

    def __init__(self, send: Send, on_broken: Callable[[], None]) -> None:
        self._send = send
        self._on_broken = on_broken
        self._backlog: list[Message] = []
        self._backlog_bytes = 0
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self.started = False
        self.ended = False
        self.broken = False

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status and headers."""
        self.started = True
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes, *, more: bool = True) -> None:
        """A part of the body; the last one where not `more`."""
        self.ended = not more
        self._put({"type": "http.response.body", "body": data, "more_body": more})

    async def flush(self) -> None:
        """Return when the backlog is sent, or the client has been given up."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def _put(self, message: Message) -> None:
        if self.broken:
            return
        if self._task is not None:
            self._keep(message)
            return
        coroutine: Any = self._send(message)
        try:
            waits_for = coroutine.send(None)
        except StopIteration:
            return
        except Exception:
            _log.exception("cannot send")
            self._break()
            return
        self._task = asyncio.create_task(self._catch_up(_Started(coroutine, waits_for)))

    def _keep(self, message: Message) -> None:
        self._backlog.append(message)
        self._backlog_bytes += len(message.get("body", b""))
        if self._backlog_bytes > MAX_BACKLOG_BYTES:
            self._break()
        elif len(self._backlog) > PAUSE_AT_MESSAGES or self._backlog_bytes > PAUSE_AT_BYTES:
            self._pause()

    def _pause(self) -> None:
        if self.source is not None and not self._paused and not self.ended:
            self._paused = True
            self.source.pause()

    async def _catch_up(self, started: "_Started") -> None:
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await started
            while self._backlog:
                backlog, self._backlog, self._backlog_bytes = self._backlog, [], 0
                for message in _merged(backlog):
                    async with asyncio.timeout(STALL_TIMEOUT_S):
                        await self._send(message)
                if self._paused and not self._backlog and not self.ended:
                    async with asyncio.timeout(STALL_TIMEOUT_S):
                        await self._send(_NOTHING)  # returns when the connection has room again
        except TimeoutError:
            self._break()
        except Exception:
            _log.exception("cannot send")
            self._break()
        finally:
            self._task = None
        self._resume()

    def _resume(self) -> None:
        if self._paused and not self.broken and self.source is not None:
            self._paused = False
            self.source.resume()

    def _break(self) -> None:
        self.broken = True
        self._backlog.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._on_broken()


_NOTHING: Message = {"type": "http.response.body", "body": b"", "more_body": True}


class _Started:
    """A coroutine that has run up to its first wait, made awaitable again."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
        except BaseException:
            self._coroutine.close()
            raise
        yield from self._coroutine.__await__()


def _merged(messages: list[Message]) -> list[Message]:
    """The same with neighbouring parts of the body in one message."""
    parts = [m for m in messages if m["type"] == "http.response.body"]
    if not parts:
        return messages
    body = b"".join(m["body"] for m in parts)
    whole = {"type": "http.response.body", "body": body, "more_body": parts[-1]["more_body"]}
    return [*(m for m in messages if m["type"] != "http.response.body"), whole]
