"""uvicorn's HTTP protocol with the limits that it lacks: bytes and seconds before the body, and open connections.

Idle connections, once they have been answered, are uvicorn's own business (`timeout_keep_alive`).
"""

import asyncio
import resource
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baton.errors import BatonError, InvalidRequest
from router.error_format import HeadersTooLarge, RequestTimeout, error_json
from router.exchange import mint_request_id

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
_RESERVED_DESCRIPTORS = 256  # for nodes, Redis, logs


class LimitedProtocol(HttpToolsProtocol):
    """One client connection. The scope offers `baton.abort`, which drops the connection without a flush."""

    _head_bytes = 0  # of the request whose head is being read
    _reading_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _reason: BatonError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse connections that would take the last file descriptors; start the clock for the others."""
        if len(self.connections) >= max_connections():
            transport.abort()
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before a body: the parser itself would collect without end."""
        if self._reading_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._reading_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._reason = _HEADERS_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins, perhaps on a connection that was idle."""
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {"baton.abort": {"call": self.transport.abort}}
        self._num_bytes = 0
        if self._head_timer is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """From here on the application has its own limits."""
        self._stop_clock()
        self._reading_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Whatever follows is another head."""
        super().on_message_complete()
        self._reading_head, self._head_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        """As every error: an object that names the reason."""
        error = self._reason or _INVALID_HTTP
        if self.cycle is not None and not self.cycle.response_complete:  # in the middle of another answer
            self.transport.close()
            return
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

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._reason = _HEADERS_TOO_LARGE
            raise httptools.HttpParserError("too large")

    def _expect_head(self) -> None:
        self._reading_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def _head_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes == 0 or (self.cycle is not None and not self.cycle.response_complete):
            self.transport.close()  # nothing was asked, or an answer is under way
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


def max_connections() -> int:
    """How many clients this process has file descriptors for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, limit - _RESERVED_DESCRIPTORS)


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
