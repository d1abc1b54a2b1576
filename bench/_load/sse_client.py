"""A client that measures streams: raw asyncio and httptools, so that it takes little of the CPU it shares.

One connection carries one request after the other, as a keep-alive client's does. What the tokens say is not looked
at, only when they come.
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
    """One streamed answer. Times are of time.monotonic()."""

    began: float
    times: list[float] = field(default_factory=list)  # of each event with text
    ended: float = 0.0
    status: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""
    timed_out: bool = False
    sent: float = 0.0  # an open loop begins when a request was due, which is a little earlier

    @property
    def ok(self) -> bool:
        """Whether it came whole."""
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
    def tpot_s(self) -> float:
        """(E2E - TTFT) / (n - 1)."""
        return (self.times[-1] - self.times[0]) / max(1, self.num_output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the gap before each event but the first."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class StreamClient(asyncio.Protocol):
    """One keep-alive connection; `post` one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = Stream(0.0)
        self._rest = b""
        self._keeps = True
        self._is_done = False  # the stream has said so

    @classmethod
    async def connect(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> "StreamClient":
        """A client with an open connection. OSError where there is nobody."""
        return (await asyncio.get_running_loop().create_connection(cls, host, port, ssl=tls))[1]

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing() and self._keeps

    @property
    def stream(self) -> Stream:
        """The latest answer, as far as it has come."""
        return self._stream

    async def post(self, path: str, body: dict[str, Any], api_key: str, timeout_s: float) -> Stream:
        """Send a request, and return when its answer has ended or its time is up."""
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
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        if not self._done.done():
            if not self._is_done:  # where no length was told, the end of an answer is that of its connection
                self._stream.error = self._stream.error or "connection lost"
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._stream.error = f"not HTTP: {error}"
            self.close()

    def on_headers_complete(self) -> None:
        """Of httptools."""
        self._stream.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        now = time.monotonic()
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self._take(event, now)

    def on_message_complete(self) -> None:
        """Of httptools."""
        self._keeps = self._parser.should_keep_alive()
        if self._stream.status != 200:
            self._stream.error = self._rest.decode(errors="replace")[:200]
        elif not self._is_done and not self._stream.error:
            self._stream.error = "the stream ended without [DONE]"
        elif not self._stream.times and self._stream.num_output_tokens:
            self._stream.times.append(
                time.monotonic()
            )  # tokens that are no text: what is known is when they were all there
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
