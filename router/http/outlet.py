"""One answer on its HTTP/1 connection: head and chunks in plain calls, where ASGI has a coroutine and a dict for each.

It takes the place of the `send` of uvicorn's request cycle, whose other half goes on reading, and keeps the cycle's
state as that `send` would. Status, headers and the first part of the body are one write.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from router.http.error_format import Header

Insert = Callable[[bytes], bool]

_BODILESS = (204, 304)
_SIZE_LINES = [b"%x\r\n" % size for size in range(1024)]


class Gate:
    """Of one connection: whether a chunk may be written right now. It is asked for every token: one look must do."""

    __slots__ = ("_reasons", "is_shut")

    def __init__(self) -> None:
        self.is_shut = False
        self._reasons: set[str] = set()

    def set(self, reason: str, *, shut: bool) -> None:
        """There is, or no longer is, this reason against it."""
        (self._reasons.add if shut else self._reasons.discard)(reason)
        self.is_shut = bool(self._reasons)


class Outlet:
    """Made when the headers of a request are there. Nothing is written to a connection that is lost."""

    def __init__(self, cycle: RequestResponseCycle, gate: Gate) -> None:
        scope: Any = cycle.scope
        self._cycle = cycle
        self._gate = gate
        self._flow: FlowControl = cycle.flow
        self._transport = cycle.transport
        self._has_body: bool = scope["method"] != "HEAD"
        self._knows_chunks: bool = scope["http_version"] == "1.1"
        self._is_chunked = False
        self._head = b""
        self.abort = cycle.transport.abort  # drops the connection without a flush

    @property
    def has_body(self) -> bool:
        """Whether the request is here to its end: there is nothing to wait for."""
        return not self._cycle.more_body

    @property
    def asks_first(self) -> bool:
        """Whether the client waits to be told to send its body, and may keep it where it is answered before."""
        return self._cycle.waiting_for_100_continue and not self.has_body

    def take_body(self) -> bytes:
        """Of a request that is here to its end. What its `receive` tells after that is that the client has left."""
        cycle = self._cycle
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        cycle.waiting_for_100_continue = False  # it was sent without waiting
        return body

    @property
    def is_full(self) -> bool:
        """Whether the client has to read first."""
        return self._flow.write_paused and not self._cycle.disconnected

    async def room(self) -> None:
        """Return when it is not full."""
        if self.is_full:
            await self._flow.drain()

    def hold(self, held: bool) -> None:
        """Insert nothing while parts wait elsewhere that come before it."""
        self._gate.set("held", shut=held)

    def start(self, status: int, headers: list[Header]) -> None:
        """Status and headers; they go out with the next part, which may be empty."""
        cycle = self._cycle
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]]
        names = [name for name, _ in headers]
        if b"connection" in names:
            cycle.keep_alive = False
        has_length = b"content-length" in names or not self._has_body or status in _BODILESS
        self._is_chunked = self._knows_chunks and not has_length
        if not cycle.keep_alive and b"connection" not in names:
            lines.append(b"connection: close\r\n")
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines):
            raise ValueError("a line break in a header")
        self._head = head + b"\r\n"

    def write(self, data: bytes, *, more: bool) -> None:
        """A part of the body; the last one where not `more`."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        if cycle.response_complete:
            raise RuntimeError("the answer is complete")
        head, self._head = self._head, b""
        framed = self._framed(data, more=more) if self._has_body else b""
        if head or framed:
            self._transport.write(head + framed)
        if not more:
            self._complete()

    def inserter(self, before: bytes, after: bytes) -> Insert | None:
        """What writes a chunk around a text, in one frame and with few objects to fetch. None: nothing is chunked.

        It returns False, and writes nothing, where the connection is full, lost or held.
        """
        if not self._is_chunked:
            return None
        gate, write = self._gate, self._transport.write
        size_around, ending = len(before) + len(after), after + b"\r\n"

        def insert(text: bytes) -> bool:
            if gate.is_shut:
                return False
            size = size_around + len(text)
            line = _SIZE_LINES[size] if size < len(_SIZE_LINES) else b"%x\r\n" % size
            write(b"".join((line, before, text, ending)))
            return True

        return insert

    def _framed(self, data: bytes, *, more: bool) -> bytes:
        if not self._is_chunked:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk if more else chunk + b"0\r\n\r\n"

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete, self._is_chunked = True, False
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()
