"""uvicorn's HTTP protocol with the limits that it lacks: bytes and seconds before the body, pieces, open connections.

A body whose request has been answered already is read to its end for a while, so that the client sees the answer.
Idle connections, once they have been answered, are uvicorn's own business (`timeout_keep_alive`). Who asks for another
protocol (Java's own client does, for HTTP/2) is answered in this one; the parser would leave its body out.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baton.errors import BatonError, InvalidRequest
from router.http.connections import Connections, counted_address
from router.http.error_format import HeadersTooLarge, RequestTimeout, error_json
from router.http.exchange import mint_request_id
from router.http.outlet import Gate, Outlet

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
MAX_CHUNKS = 2**14  # of a body; each costs a call
MAX_PIPELINED = 1024
_MAX_WISHES = 16  # for other protocols, in what is read at once: each is a copy
_SINGLE_HEADERS = (b"host", b"authorization", b"content-type")


class LimitedProtocol(HttpToolsProtocol):
    """One client connection. The scope's `baton.outlet` takes its answers."""

    def __init__(self, open_connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_connections = open_connections
        self._gate = Gate()
        self._address: str | None = None  # under which it is counted
        self._reading_head = True
        self._head_bytes = 0  # of the request whose head is being read
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_bytes = self._num_chunks = 0  # of request line and headers; of the body
        self._reason: BatonError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse connections of which there are too many; start the clock for the others."""
        super().connection_made(transport)
        address = counted_address(transport)
        if not self._open_connections.enter(address):
            transport.abort()
            return
        self._address = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: stop its clock, and count it out."""
        self._gate.set("lost", shut=True)
        self._stop_clock()
        if self._address is not None:
            self._open_connections.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before a body: the parser itself would collect without end."""
        if self._reading_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if not self._reading_head or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._reason = _HEADERS_TOO_LARGE
            self.send_400_response("")
        elif self._head_timer is None and self._head_bytes:  # most heads come whole, and need no clock
            self._expect_head(self._head_bytes)

    def pause_writing(self) -> None:
        """The client is behind by more than the transport wants to keep."""
        self._gate.set("full", shut=True)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up with what was written."""
        self._gate.set("full", shut=False)
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins, perhaps on a connection that was idle."""
        super().on_message_begin()
        self._num_bytes = self._num_chunks = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        self._head_bytes = self._head_bytes or 1  # another one has begun behind the one before

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._num_bytes += len(url)
        if self._num_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header. One behind the body counts, and says nothing: a proxy has not looked at it."""
        self._num_bytes += len(name) + len(value)
        if self._num_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._refuse_head()
        if self._reading_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """From here on the application has its own limits."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("no proxy")
            return  # they come again
        self._stop_clock()
        self._reading_head = False
        self._check_head()
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {"baton.outlet": Outlet(self.cycle, self._gate)}

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._num_chunks += 1
        if self._num_chunks > MAX_CHUNKS:
            raise httptools.HttpParserError("too many chunks")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here to its end: whatever follows is the head of another."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._stop_clock()
        self._reading_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        """A body that nobody wants any more has only so long to end."""
        super().on_response_complete()
        if not self._reading_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no valid request, as every error is answered (`_reason`, 400 unless told), and close."""
        error = self._reason or _INVALID_HTTP
        if self.cycle is not None and not self.cycle.response_complete:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()  # in the middle of another answer
                return
            self.cycle.disconnected = True  # it is the body of this request
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
        self.transport.close()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. A request that asks for another protocol is fed again without its `Upgrade` header."""
        for _ in range(_MAX_WISHES):
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_wish() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        raise httptools.HttpParserError("too many wishes at once")

    def _head_without_wish(self) -> bytes:
        version = self.parser.get_http_version().encode()
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        others = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join([first, *others, b"\r\n"])

    def _check_head(self) -> None:
        """Refuse what a proxy before us may understand otherwise."""
        version = self.parser.get_http_version()
        names = [name for name, _ in self.headers]
        num_hosts = names.count(b"host")
        if version not in ("1.1", "1.0") or (num_hosts == 0 and version == "1.1"):
            raise httptools.HttpParserError("version or host")
        if len(set(names)) < len(names) and any(names.count(name) > 1 for name in _SINGLE_HEADERS):
            raise httptools.HttpParserError("a header twice")
        if b"transfer-encoding" in names and dict(self.headers)[b"transfer-encoding"].lower() != b"chunked":
            raise httptools.HttpParserError("transfer coding")
        if b"expect" in names:
            self.expect_100_continue = any(
                name == b"expect" and v.lower() == b"100-continue" for name, v in self.headers
            )

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
_INVALID_HTTP = InvalidRequest("this is no valid HTTP request")
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
