"""An OpenAI server that computes nothing, the backend of other routers in `bench router`; and a simple proxy.

    python -m bench._router.openai server PORT
    python -m bench._router.openai proxy PORT URL

Every STEP_S the server writes one token to each of its streams. The proxy is the obvious one in FastAPI and httpx.
"""

import asyncio
import json
import sys
from typing import Any

import httptools
import uvloop

from bench._router.nodes import STEP_S

_CHUNK = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef01234567",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [{"index": 0, "delta": {"content": " b"}, "logprobs": None, "finish_reason": None}],
    }
).encode()
_EVENT = b"data: %s\n\n" % _CHUNK
_USAGE = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
_WHOLE = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "b"}, "finish_reason": "length"}],
        "usage": _USAGE,
    }
).encode()
_MODELS = json.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "x"}]}).encode()
_INFO = json.dumps({"model_path": "mock", "served_model_name": "mock", "is_generation": True}).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    streams: dict["Connection", int] = {}  # noqa: RUF012 - tokens left, of the whole process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._path, self._body = b"", bytearray()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Callback of httptools."""
        self._path = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """Callback of httptools."""
        self._body += body

    def on_message_complete(self) -> None:
        """Callback of httptools."""
        if b"completions" not in self._path:
            self._answer(_MODELS if b"models" in self._path else _INFO)
            return
        asked = json.loads(self._body)
        if not asked.get("stream"):
            self._answer(_WHOLE)
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head + _chunk(_EVENT))
        self.streams[self] = (
            asked.get("max_tokens") or asked["max_completion_tokens"]
        ) - 1  # some routers rename the field

    def step(self) -> None:
        """Send one token, or end the stream."""
        self.streams[self] -= 1
        if self.streams[self] > 0:
            self._transport.write(_chunk(_EVENT))
            return
        del self.streams[self]
        self._transport.write(_chunk(_EVENT + b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve(port: int) -> None:
    """Serve until the process is told to end."""
    await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    while True:
        await asyncio.sleep(STEP_S)
        for connection in list(Connection.streams):
            connection.step()


def proxy(port: int, url: str) -> None:
    """Run a proxy of FastAPI and httpx with their default settings."""
    import httpx
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import Response, StreamingResponse

    app = FastAPI()
    client = httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))  # noqa: S113

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    async def forward(request: Request) -> Response:
        asked = await request.json()
        sent = client.build_request("POST", request.url.path, json=asked)
        answer = await client.send(sent, stream=True)
        if asked.get("stream"):
            return StreamingResponse(answer.aiter_raw(), media_type="text/event-stream")
        return Response(await answer.aread(), media_type="application/json")

    forward.__annotations__["request"] = Request
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        proxy(int(sys.argv[2]), sys.argv[3])
    else:
        uvloop.run(serve(int(sys.argv[2])))
