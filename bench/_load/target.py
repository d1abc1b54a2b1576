"""The endpoint under load: its address, its API key, and queries to it."""

import asyncio
import json
import os
import re
import ssl
from dataclasses import dataclass, field

from baton.errors import ConfigError
from baton.net.failure import reason
from baton.net.url import http_url

_TIMEOUT_S = 10.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


@dataclass(frozen=True)
class Target:
    """An OpenAI endpoint. `base_path` precedes `/v1`."""

    host: str
    port: int
    base_path: str = ""
    tls: ssl.SSLContext | None = None
    api_key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The URL without /v1."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.base_path}"

    async def get(self, path: str, timeout_s: float = _TIMEOUT_S) -> tuple[int, bytes]:
        """Return status and body. Raises OSError or TimeoutError if the endpoint does not answer."""
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
            try:
                head = f"GET {self.base_path}{path} HTTP/1.0\r\nHost: {self.host}\r\n"
                head += f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
                writer.write(head.encode() + b"\r\n")
                head_bytes, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if not (status := _STATUS.match(head_bytes)):
            raise ConnectionError("the answer is not HTTP" if head_bytes else "the connection was closed")
        return int(status[1]), body

    async def first_model(self) -> str:
        """Return the first model that the endpoint lists. Raises ConfigError if there is none."""
        try:
            status, body = await self.get("/v1/models")
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(f"{self.url} does not answer: {reason(error)}") from None
        try:
            return str(json.loads(body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            why = ": set BATON_API_KEY" if status == 401 else ""
            raise ConfigError(f"{self.url}/v1/models answers {status} and names no model{why}") from None


def target_of(url: str, api_key_env: str = "") -> Target:
    """Parse a URL with or without /v1. The key is in the named variable, BATON_API_KEY or OPENAI_API_KEY."""
    parts = http_url(url)
    if api_key_env and api_key_env not in os.environ:
        raise ConfigError(f"--api-key-env: variable {api_key_env} is not set")
    names = (api_key_env,) if api_key_env else ("BATON_API_KEY", "OPENAI_API_KEY")
    key = next((os.environ[name] for name in names if os.environ.get(name)), "")
    is_tls = parts.scheme == "https"
    return Target(
        host=parts.hostname or "",
        port=parts.port or (443 if is_tls else 80),
        base_path=parts.path.rstrip("/").removesuffix("/v1"),
        tls=ssl.create_default_context() if is_tls else None,
        api_key=key.partition(",")[0],
    )
