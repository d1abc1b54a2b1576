"""A client that measures streams. It uses plain asyncio and httptools, to take little of the CPU it shares.

A connection carries one request after another, as with any keep-alive client. Only the times of tokens are recorded,
not their text.
"""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import httptools


@dataclass
class Stream:
    """A streamed answer. Times are from time.monotonic()."""

    began: float
    times: list[float] = field(default_factory=list)  # of each event with text
    ended: float = 0.0
    status: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""
    timed_out: bool = False
    sent: float = 0.0  # `began` may be earlier: in an open loop it is when the request was due

    @property
    def ok(self) -> bool:
        """Whether the answer is complete."""
        return self.status == 200 and not self.error and bool(self.times)

    @property
    def ttft_s(self) -> float:
        """Time to the first text."""
        return self.times[0] - self.began

    @property
    def e2e_s(self) -> float:
        """Time to the last text."""
        return self.times[-1] - self.began

    @property
    def has_tpot(self) -> bool:
        """Whether there are at least two tokens, and the times of two: special tokens have no text, and so no time."""
        return self.num_output_tokens > 1 and len(self.times) > 1

    @property
    def tpot_s(self) -> float:
        """(E2E - TTFT) / (n - 1). Only meaningful if `has_tpot`."""
        return (self.times[-1] - self.times[0]) / max(1, self.num_output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the gap before each event except the first."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class StreamClient(asyncio.Protocol):
    """A keep-alive connection; call `post` for one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = Stream(0.0)
        self._rest = b""
        self._keeps = True
        self._is_done = False  # the stream has sent [DONE]

    @classmethod
    async def connect(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> "StreamClient":
        """Connect and return a client. Raises OSError if the server cannot be reached."""
        return (await asyncio.get_running_loop().create_connection(cls, host, port, ssl=tls))[1]

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent on this connection."""
        return self._transport is not None and not self._transport.is_closing() and self._keeps

    @property
    def stream(self) -> Stream:
        """The latest answer, as far as it has arrived."""
        return self._stream

    async def post(self, path: str, body: dict[str, Any], api_key: str, timeout_s: float) -> Stream:
        """Send a request; return its answer when it has ended, or when its time is up."""
        if self._transport is None or self._transport.is_closing():
            return Stream(time.monotonic(), ended=time.monotonic(), error="the server closed the connection")
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        )
        head += f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._done = asyncio.get_running_loop().create_future()
        self._rest, self._is_done = b"", False
        self._parser = httptools.HttpResponseParser(self)
        self._stream = stream = Stream(time.monotonic(), sent=time.monotonic())
        self._transport.write(head.encode() + b"\r\n" + data)
        try:
            async with asyncio.timeout(timeout_s):
                await self._done
        except TimeoutError:
            stream.error, stream.timed_out = "timed out", True
            self.close()
        stream.ended = time.monotonic()
        return stream

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if not self._done.done():
            if not self._is_done:  # without a length, an answer ends with its connection
                self._stream.error = self._stream.error or "connection lost"
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._stream.error = f"not HTTP: {error}"
            self.close()

    def on_headers_complete(self) -> None:
        """Callback of httptools."""
        self._stream.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Callback of httptools."""
        now = time.monotonic()
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self._take(event, now)

    def on_message_complete(self) -> None:
        """Callback of httptools."""
        self._keeps = self._parser.should_keep_alive()
        if self._stream.status != 200:
            self._stream.error = self._rest.decode(errors="replace")[:200]
        elif not self._is_done and not self._stream.error:
            self._stream.error = "the stream ended without [DONE]"
        elif not self._stream.times and self._stream.num_output_tokens:
            self._stream.times.append(time.monotonic())  # tokens without text: only the time of the last one is known
        if not self._done.done():
            self._done.set_result(None)

    def _take(self, event: bytes, now: float) -> None:
        if not event.startswith(b"data:"):
            return
        if event == b"data: [DONE]":
            self._is_done = True
            return
        if self._stream.times and b'"usage":{' not in event and b'"usage": {' not in event and b'"error"' not in event:
            self._stream.times.append(now)  # the common case, unparsed
            return
        message = json.loads(event[5:])
        if "error" in message:
            self._stream.error = str(message["error"].get("message"))
        if usage := message.get("usage"):
            self._stream.num_prompt_tokens = usage["prompt_tokens"]
            self._stream.num_output_tokens = usage["completion_tokens"]
        if any(_text(choice) for choice in message.get("choices", ())):
            self._stream.times.append(now)


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
