"""Writes one answer to its HTTP/1 connection with plain calls, where ASGI needs a coroutine and a dict per part.

It replaces the `send` of uvicorn's request cycle and updates the cycle's state as that would; the cycle continues to
read. Status, headers and the first part of the body are sent in one write.
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
    """Whether a chunk may be written to a connection now. Checked for every token, so it is a plain attribute."""

    __slots__ = ("_reasons", "is_shut")

    def __init__(self) -> None:
        self.is_shut = False
        self._reasons: set[str] = set()

    def set(self, reason: str, *, shut: bool) -> None:
        """Add a reason to shut the gate, or remove it."""
        (self._reasons.add if shut else self._reasons.discard)(reason)
        self.is_shut = bool(self._reasons)


class Outlet:
    """The answer to one request. Nothing is written to a connection that is lost."""

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
        """Whether the request has arrived completely."""
        return not self._cycle.more_body

    @property
    def asks_first(self) -> bool:
        """Whether the client waits for 100 Continue before it sends its body."""
        return self._cycle.waiting_for_100_continue and not self.has_body

    def take_body(self) -> bytes:
        """Take the body of a request that has arrived completely. Its `receive` then waits for the client to leave."""
        cycle = self._cycle
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        cycle.waiting_for_100_continue = False  # the client sent it without waiting
        return body

    @property
    def is_full(self) -> bool:
        """Whether the client has to read before more is written."""
        return self._flow.write_paused and not self._cycle.disconnected

    async def room(self) -> None:
        """Wait until it is not full."""
        if self.is_full:
            await self._flow.drain()

    def hold(self, held: bool) -> None:
        """Shut the gate for inserters while earlier parts wait in the sender's backlog, or open it again."""
        self._gate.set("held", shut=held)

    def start(self, status: int, headers: list[Header]) -> None:
        """Set status and headers, which are sent with the next part, even if that is empty."""
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
            raise ValueError("a header contains a line break")
        self._head = head + b"\r\n"

    def write(self, data: bytes, *, more: bool) -> None:
        """Write a part of the body; without `more`, it is the last one."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        if cycle.response_complete:
            raise RuntimeError("the answer is already complete")
        head, self._head = self._head, b""
        framed = self._framed(data, more=more) if self._has_body else b""
        if head or framed:
            self._transport.write(head + framed)
        if not more:
            self._complete()

    def inserter(self, before: bytes, after: bytes) -> Insert | None:
        """Return a fast function that writes a text between `before` and `after` as one chunk; None if not chunked.

        It returns False, and writes nothing, if the gate is shut: the connection is full or lost, or parts wait.
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
        if not cycle.keep_alive and self.has_body:
            self._transport.close()
        cycle.on_response()
