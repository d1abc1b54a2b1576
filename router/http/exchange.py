"""One HTTP request and its answer, on bare ASGI: reads the body within limits, and sends answers and errors.

What a request means is up to its handler, in `router.openai` or `router.admin`.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from baton.errors import BatonError, Overloaded
from baton.telemetry.timeline import MAX_PARTS, Timeline
from router.http import turns
from router.http.account import NOBODY
from router.http.error_format import (
    BodyTooLarge,
    Header,
    RequestTimeout,
    UnsupportedMediaType,
    error_headers,
    error_json,
)
from router.http.outlet import Outlet
from router.http.sender import Sender
from router.http.turns import Check

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Any, Any, Any], Awaitable[None]]  # loosely typed: libraries' ASGI types differ

MAX_BODY_BYTES = 8 * 2**20
_MAX_SKIPPED_BYTES = 8 * MAX_BODY_BYTES  # a body up to this size is read and dropped, so the client sees the error
MAX_HELD_BYTES = 128 * 2**20  # of all incomplete bodies together
_CHUNK_TIMEOUT_S = 10.0
_BODY_TIMEOUT_S = 60.0
_JSON = b"application/json"
_NO_TIMINGS: Mapping[str, float] = MappingProxyType({})
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger(__name__)


class Exchange:
    """A request and its answer, created when its headers have arrived. Only `read_body` and `gone` wait."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Removes `baton.outlet` from the scope: the two would keep each other alive."""
        self.arrived_s = time.monotonic()
        self._receive = receive
        outlet: Outlet = scope["extensions"].pop("baton.outlet")
        self._outlet = outlet
        self.sender = Sender(outlet, self._broken)
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii")  # not unquoted, so that it is what a proxy has checked
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers)
        self.timeline = Timeline(self.request_id)
        self.timeline.began_s = self.arrived_s
        self.account = NOBODY
        self.model = ""  # the requested one, if it is served
        self.status = 0  # 0: nothing sent yet
        self.error_code: str | None = None
        self.left = False  # whether the client left before its answer was complete
        self.closing = False  # whether the connection is to be closed after this answer
        self.num_tokens = (0, 0)  # prompt, output
        self.num_cached_tokens = 0  # of the prompt
        self.timings: Mapping[str, float] = _NO_TIMINGS
        self._num_held = 0  # bytes held of its incomplete body

    def part_id(self) -> str:
        """Mint an id for one of the request's jobs: the client's own id might not be unique."""
        minted = f"{self.request_id}-{os.urandom(8).hex()}"
        if len(self.timeline.parts) < MAX_PARTS:
            self.timeline.parts = *self.timeline.parts, minted
        return minted

    def header(self, name: bytes) -> str:
        """Return the value of a header, or "" if it is missing."""
        return self.headers.get(name, b"").decode("latin-1")

    async def read_body(self, check: Check) -> bytes:
        """Read the JSON body; bytes beyond the limit are never kept. `check` raises an error if it must not be decoded.

        Raises UnsupportedMediaType, BodyTooLarge, RequestTimeout, Overloaded or ClientGone.
        """
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType("send the body as application/json")
        if self.header(b"content-encoding").strip().lower() not in ("", "identity"):
            raise UnsupportedMediaType("send the body as it is, without Content-Encoding")
        body = self._take() if self._outlet.has_body else await self._read_late()
        if len(body) > turns.LARGE_BYTES:
            await turns.TURNS.take(body, check)
        else:
            check(body)
        return body

    def _take(self) -> bytes:
        """Take a body that has arrived completely."""
        body = self._outlet.take_body()
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        return body

    async def _read_late(self) -> bytes:
        """Read a body that has not arrived completely."""
        declared = self.header(b"content-length")
        num_declared = int(declared) if declared.isascii() and declared.isdigit() else 0
        if num_declared > (MAX_BODY_BYTES if self._outlet.asks_first else _MAX_SKIPPED_BYTES):
            self.closing = True
            raise _too_large()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                return await self._read()
        except TimeoutError:
            self.closing = True
            raise RequestTimeout("the body did not arrive in time") from None
        finally:
            self._keep(-self._num_held)

    def send(self, status: int, body: bytes, content_type: bytes = _JSON, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        listed = self._described(status, [(b"content-type", content_type), length, *headers])
        self.sender.send(status, listed, b"" if self.method == "HEAD" else body)

    def start(self, status: int, headers: list[Header], opening: bytes = b"") -> None:
        """Send status and headers of an answer, and the beginning of its body."""
        self.sender.start(status, self._described(status, headers), opening)

    def send_error(self, error: BatonError) -> None:
        """Send an error as the whole answer."""
        self.error_code = error.code
        self.send(error.status, error_json(error), headers=error_headers(error))

    async def gone(self) -> None:
        """Wait until the answer is complete, or the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def close(self) -> None:
        """Drop references to the maker of the answer, which form a cycle that only the collector would free."""
        self.sender.close()

    def _described(self, status: int, headers: list[Header]) -> list[Header]:
        """Return the headers, with those that every answer has."""
        self.status = status
        last = [(b"connection", b"close")] if self.closing or self._outlet.asks_first else []
        return [*headers, (b"x-request-id", self.request_id.encode()), *self.account.headers, *last]

    async def _read(self) -> bytes:
        chunks, num_bytes, is_crowded = [], 0, False
        while True:
            message = await self._receive_soon()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client left")
            chunk: bytes = message.get("body", b"")
            num_bytes += len(chunk)
            if num_bytes > _MAX_SKIPPED_BYTES:
                self.closing = True
                raise _too_large()
            has_more = message.get("more_body", False)
            is_crowded = is_crowded or (has_more and _HELD.num_bytes > MAX_HELD_BYTES)
            if num_bytes <= MAX_BODY_BYTES and not is_crowded:
                chunks.append(chunk)
            else:
                chunks.clear()
            if not has_more:
                break
            self._keep(len(chunk) if chunks else -self._num_held)
        if num_bytes > MAX_BODY_BYTES:
            raise _too_large()
        if is_crowded:
            raise _crowded()
        return b"".join(chunks)

    def _keep(self, num_bytes: int) -> None:
        self._num_held += num_bytes
        _HELD.num_bytes += num_bytes

    async def _receive_soon(self) -> Message:
        if self._outlet.has_body:  # no wait, so no timeout, which would cost more than all the rest
            return await self._receive()
        async with asyncio.timeout(_CHUNK_TIMEOUT_S):
            return await self._receive()

    def _broken(self) -> None:
        _log.info("the client does not read its answer", extra={"request_id": self.request_id})
        self._outlet.abort()


class _Held:
    """The bytes that this process holds of incomplete bodies, which thousands of slow clients may send at once."""

    num_bytes = 0


_HELD = _Held()


class ClientGone(BatonError):
    """The client left before its request was complete, so nobody reads the answer."""

    status = 499
    code = "client_gone"


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")


def _crowded() -> Overloaded:
    return Overloaded("Too many request bodies are being received at present")


def mint_request_id() -> str:
    """Mint an id for a request that carries no valid one."""
    return f"req-{os.urandom(12).hex()}"


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _SANE_ID.fullmatch(given) else mint_request_id()
