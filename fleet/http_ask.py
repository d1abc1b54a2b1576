"""Helpers for commands that query an endpoint with the standard library's HTTP, which is quick to import."""

import http.client
import json

from baton.net.url import http_url


def connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection, opened by its first request, and the path in `url`. Raises ConfigError."""
    parts = http_url(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s), parts.path.rstrip("/")


def error_message(body: bytes, otherwise: str) -> str:
    """Return the message of `{"error": {"message": …}}`, or `otherwise`."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
