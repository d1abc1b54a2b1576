"""uvicorn's HTTP protocol with the limits that it lacks: bytes and seconds before the body, and open connections.

A body whose request has been answered already is read to its end for a while, so that the client sees the answer.
Idle connections, once they have been answered, are uvicorn's own business (`timeout_keep_alive`).
"""

import asyncio
import ipaddress
import resource
from collections import Counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baton.errors import BatonError, InvalidRequest
from router.error_format import HeadersTooLarge, RequestTimeout, error_json
from router.exchange import mint_request_id
from router.outlet import Gate, Outlet

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
_RESERVED_DESCRIPTORS = 256  # for nodes, Redis, logs
_IPV6_PREFIX_BITS = 64  # what one host or household has for itself


class Connections:
    """How many are open, by client address."""

    def __init__(self, max_per_address: int) -> None:
        """0 of `max_per_address` is no limit of its own: half of all."""
        half = max_connections() // 2
        self._max_per_address = min(max_per_address, half) if max_per_address else half
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count one in; False where that address, or this process, has as many as it may."""
        if self._open[address] >= self._max_per_address or self._open.total() >= max_connections():
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one out that `enter` has counted in."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class LimitedProtocol(HttpToolsProtocol):
    """One client connection. The scope's `baton.outlet` takes its answers."""

    _head_bytes = 0  # of the request whose head is being read
    _reading_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _reason: BatonError | None = None
    _address: str | None = None  # under which it is counted

    def __init__(self, open_connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_connections = open_connections
        self._gate = Gate()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse connections of which there are too many; start the clock for the others."""
        super().connection_made(transport)
        address = _counted_address(transport)
        if not self._open_connections.enter(address):
            transport.abort()
            return
        self._address = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._gate.set("lost", shut=True)
        self._stop_clock()
        if self._address is not None:
            self._open_connections.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before a body: the parser itself would collect without end."""
        if self._reading_head:
            self._head_bytes += len(data)
        super().data_received(data)
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
        """It has caught up."""
        self._gate.set("full", shut=False)
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins, perhaps on a connection that was idle."""
        super().on_message_begin()
        self._num_bytes = 0
        self._head_bytes = self._head_bytes or 1  # another one has begun behind the one before

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
        self._check_head()
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {"baton.outlet": Outlet(self.cycle, self._gate)}

    def on_message_complete(self) -> None:
        """Whatever follows is another head."""
        super().on_message_complete()
        self._stop_clock()
        self._reading_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        """A body that nobody wants any more has only so long to end."""
        super().on_response_complete()
        if not self._reading_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

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

    def _check_head(self) -> None:
        """Refuse what a proxy before us may understand otherwise."""
        version = self.parser.get_http_version()
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if version not in ("1.1", "1.0") or num_hosts > 1 or (num_hosts == 0 and version == "1.1"):
            raise httptools.HttpParserError("version or host")

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._reason = _HEADERS_TOO_LARGE
            raise httptools.HttpParserError("too large")

    def _expect_head(self, num_bytes: int = 0) -> None:
        self._reading_head, self._head_bytes = True, num_bytes
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


def _counted_address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else ""
    if ":" not in address:
        return address
    network = ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX_BITS), strict=False)
    return str(network)


def max_connections() -> int:
    """How many clients this process has file descriptors for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, limit - _RESERVED_DESCRIPTORS)


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
