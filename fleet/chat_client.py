"""A streaming chat client for OpenAI-compatible endpoints, over the standard library's HTTP, which imports quickly."""

import http.client
import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from baton.errors import BatonError, ConfigError
from baton.net.failure import reason
from fleet import http_ask

_TIMEOUT_S = 600.0


@dataclass
class Reply:
    """A reply, filled in while it streams."""

    text: str = ""
    finish_reason: str = ""
    ttft_s: float = 0.0
    total_s: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatClient:
    """A client of one endpoint; `url` is the endpoint without /v1."""

    url: str
    api_key: str = field(default="", repr=False)

    def first_model(self) -> str:
        """Return the first model name that the endpoint lists. Raises ConfigError if it lists none."""
        response = self._send("GET", "/v1/models", None)
        try:
            return str(json.loads(response.read())["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{self.url}/v1/models lists no model: is it an OpenAI-compatible endpoint?") from None

    def stream(self, request: dict[str, Any], reply: Reply) -> Generator[str, None, None]:
        """Yield the pieces of one reply as they arrive. Closing the iterator also ends the request on the server."""
        began = time.monotonic()
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        response = self._send("POST", "/v1/chat/completions", body)
        try:
            for event in _events(response):
                piece = _read(event, reply)
                if piece:
                    reply.ttft_s = reply.ttft_s or time.monotonic() - began
                    reply.text += piece
                    yield piece
        finally:
            reply.total_s = time.monotonic() - began
            response.close()

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}  # so closing a response ends its request
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            connection, base_path = http_ask.connection(self.url, _TIMEOUT_S)
            connection.request(method, base_path + path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"no answer from {self.url}: {reason(error)}") from None
        if response.status != 200:
            otherwise = f"{self.url}{path} answers {response.status}: is it an OpenAI-compatible endpoint?"
            raise BatonError(http_ask.error_message(response.read(64 * 1024), otherwise))
        return response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event up to [DONE]."""
    try:
        while (line := response.readline()).endswith(b"\n"):  # half a line is what a lost connection leaves
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)
    except (OSError, http.client.HTTPException) as error:
        raise BatonError(f"the answer broke off: {reason(error)}") from None
    except ValueError:
        raise BatonError("the answer is not a stream of JSON events: is it an OpenAI-compatible endpoint?") from None
    raise BatonError("the answer broke off")


def _read(event: dict[str, Any], reply: Reply) -> str:
    if "error" in event:
        raise BatonError(event["error"].get("message", "the server gave up"))
    reply.usage = event.get("usage") or reply.usage
    for choice in event.get("choices", ()):
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        return choice.get("delta", {}).get("content") or ""
    return ""
