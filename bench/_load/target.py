"""The endpoint under load: its address, its API key, and queries to it."""

import json
import os
import ssl
from dataclasses import dataclass, field

from baton.errors import ConfigError
from baton.net import http_get
from baton.net.failure import reason
from baton.net.url import http_url

_TIMEOUT_S = 10.0


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
        """Return status and body. Raises OSError if the endpoint does not answer."""
        path = self.base_path + path
        return await http_get.get(self.host, self.port, path, timeout_s, key=self.api_key, tls=self.tls)

    async def first_model(self) -> str:
        """Return the first model that the endpoint lists. Raises ConfigError if there is none."""
        try:
            status, body = await self.get("/v1/models")
        except OSError as error:
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
