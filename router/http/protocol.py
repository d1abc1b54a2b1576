"""uvicorn's HTTP protocol with limits that it lacks: size and time of the head, chunks of a body, open connections.

After an early answer, the body is read on for a while: closing a socket with unread bytes resets the connection, so the
client may lose the answer (RFC 9112, section 9.6). uvicorn itself closes idle connections (`timeout_keep_alive`). Those
who ask for an upgrade (Java's own client does) are answered in HTTP/1; the parser would leave their bodies out.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from baton.errors import BatonError, InvalidRequest
from router.http.connections import Connections, counted_address
from router.http.error_format import HeadersTooLarge, RequestTimeout, error_json
from router.http.exchange import mint_request_id
from router.http.outlet import Gate, Outlet

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
MAX_CHUNKS = 2**14  # per body; each costs a call
MAX_PIPELINED = 1024
_MAX_UPGRADES = 16  # requests to upgrade in one read: each costs a copy
_MAX_LENGTH_DIGITS = 19
_SINGLE_HEADERS = (b"host", b"authorization", b"content-type")


class LimitedProtocol(HttpToolsProtocol):
    """One client connection. Answers are sent through the `baton.outlet` in the scope."""

    def __init__(self, open_connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_connections = open_connections
        self._gate = Gate()
        self._running: RequestResponseCycle | None = None  # the request that is answered; `cycle` is the last one read
        self._address: str | None = None  # under which it is counted; None if it was refused
        self._is_over = False  # the last answer is written, and what still comes is dropped
        self._reading_head = True
        self._head_bytes = 0  # read of the current head
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_bytes = self._num_chunks = 0  # bytes of request line and headers; chunks of the body
        self._reason: BatonError | None = None  # what to answer instead of a plain 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many; otherwise start the timeout of its first head."""
        super().connection_made(transport)
        address = counted_address(transport)
        if not self._open_connections.enter(address):
            transport.abort()
            return
        self._address = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout, and count the connection out."""
        self._gate.set("lost", shut=True)
        self._stop_clock()
        if self._address is not None:
            self._open_connections.leave(self._address)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse the data, limiting the size of the head: the parser itself would buffer without bound."""
        if self._is_over:
            return
        if self._reading_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if not self._reading_head or self._is_over or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._reason = _HEADERS_TOO_LARGE
            self.send_400_response("")
        elif self._head_timer is None and self._head_bytes:  # only an incomplete head needs a timeout
            self._expect_head(self._head_bytes)

    def pause_writing(self) -> None:
        """The transport's buffer is full: the client reads too slowly."""
        self._gate.set("full", shut=True)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up with what was written."""
        self._gate.set("full", shut=False)
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._num_bytes = self._num_chunks = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        self._head_bytes = self._head_bytes or 1  # a pipelined request, whose bytes were read with those before it

    def on_url(self, url: bytes) -> None:
        """A part of the request line: limit its size."""
        self._num_bytes += len(url)
        if self._num_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. Trailers after the body count towards the limit but are ignored: a proxy may not check them."""
        self._num_bytes += len(name) + len(value)
        if self._num_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._refuse_head()
        if self._reading_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete: check it, and pass the request to the application, which limits the body."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("no proxy")
            return  # `_parse` will feed the head again, without `Upgrade`
        self._stop_clock()
        self._reading_head = False
        self._check_head()
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {"baton.outlet": Outlet(self.cycle, self._gate)}

    def on_body(self, body: bytes) -> None:
        """A piece of the body: limit their number."""
        self._num_chunks += 1
        if self._num_chunks > MAX_CHUNKS:
            raise httptools.HttpParserError("too many chunks")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete: whatever follows is the head of another one."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._stop_clock()
        self._reading_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        """The answer is complete. If the body is not, it has HEAD_TIMEOUT_S to end."""
        super().on_response_complete()
        if not self.cycle.response_complete or not self.cycle.more_body:
            return
        if not self.cycle.keep_alive:
            self._linger()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer an invalid request with `_reason`, or 400, in the usual error format, and close the connection."""
        error = self._reason or _INVALID_HTTP
        if self.cycle is not None and not self.cycle.response_complete:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()  # another answer is being sent
                return
            self.cycle.disconnected = True  # the body of the current request is invalid
            self.cycle.message_event.set()
        body = error_json(error)
        lines = [
            f"HTTP/1.1 {error.status} {_PHRASES[error.status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {mint_request_id()}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._linger()

    def _linger(self) -> None:
        """End the connection, but give the client HEAD_TIMEOUT_S to read its answer and to stop sending."""
        self._is_over = True
        self._stop_clock()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. A request to upgrade is fed again without its `Upgrade` header."""
        for _ in range(_MAX_UPGRADES):
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        raise httptools.HttpParserError("too many upgrades at once")

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        others = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join([first, *others, b"\r\n"])

    def _check_head(self) -> None:
        """Refuse requests that a proxy in front of the router might interpret differently."""
        version = self.parser.get_http_version()
        names = [name for name, _ in self.headers]
        num_hosts = names.count(b"host")
        if version not in ("1.1", "1.0") or (num_hosts == 0 and version == "1.1"):
            raise httptools.HttpParserError("version or host")
        if len(set(names)) < len(names) and any(names.count(name) > 1 for name in _SINGLE_HEADERS):
            raise httptools.HttpParserError("a header twice")
        headers = dict(self.headers)
        if b"transfer-encoding" in names and (version == "1.0" or headers[b"transfer-encoding"].lower() != b"chunked"):
            raise httptools.HttpParserError("transfer coding")
        if len(headers.get(b"content-length", b"")) > _MAX_LENGTH_DIGITS:
            raise httptools.HttpParserError("length")
        if b"expect" in names:
            self.expect_100_continue = (b"expect", b"100-continue") in [(n, v.lower()) for n, v in self.headers]

    def _refuse_head(self) -> None:
        self._reason = _HEADERS_TOO_LARGE
        raise httptools.HttpParserError("too large")

    def _expect_head(self, num_bytes: int = 0) -> None:
        self._reading_head, self._head_bytes = True, num_bytes
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def _head_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes == 0:
            self.transport.close()  # nothing was asked
            return
        self._reason = RequestTimeout("the headers did not arrive in time")
        self.send_400_response("")

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


_HEADERS_TOO_LARGE = HeadersTooLarge(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
_INVALID_HTTP = InvalidRequest("this is not a valid HTTP request")
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
