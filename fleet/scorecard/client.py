"""The scorecard's client: one request after another, keeping whole answers."""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from baton.net.failure import reason
from bench._load.target import Target
from fleet import http_ask

_TIMEOUT_S = 60.0
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Reply:
    """A complete response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    first_byte_s: float  # from the request to the first bytes of the body

    @property
    def json(self) -> Any:
        """Return the body as JSON. Raises ValueError if it is not JSON."""
        return json.loads(self.body)

    @property
    def error_code(self) -> str:
        """The code in `{"error": {"code": …}}`, or an empty string."""
        try:
            return str(self.json["error"]["code"])
        except (ValueError, LookupError, TypeError):
            return ""

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events of a stream, without [DONE]."""
        lines = (line.removeprefix(b"data:").strip() for line in self.body.splitlines() if line.startswith(b"data:"))
        return [json.loads(line) for line in lines if line != b"[DONE]"]


class Client:
    """A client of one endpoint, with its API key."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send a request and return the reply. `key` "" sends no key. Raises OSError if nobody answers."""
        connection, base_path = http_ask.connection(self.target.url, _TIMEOUT_S)
        sent = {"Content-Type": "application/json", **(headers or {})}
        if used := self.target.api_key if key is None else key:
            sent["Authorization"] = f"Bearer {used}"
        try:
            began_s = time.monotonic()
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, base_path + path, body=data, headers=sent)
            response = connection.getresponse()
            first = response.read1(65536)
            took_s = time.monotonic() - began_s
            rest = response.read(_MAX_BYTES)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{path}: {reason(error)}") from None
        finally:
            connection.close()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, first + rest, took_s)

    def complete(self, model: str, prompt: Any, max_tokens: int, **more: Any) -> Reply:
        """Send a greedy request to /v1/completions."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}
        return self.ask("POST", "/v1/completions", body)
