"""What commands need to ask an endpoint with the standard library's HTTP, which starts in no time."""

import http.client
import json

from baton.net.url import http_url


def connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """Opened with its first request; and the path in `url`. ConfigError where it is no address."""
    parts = http_url(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s), parts.path.rstrip("/")


def error_message(body: bytes, otherwise: str) -> str:
    """Of `{"error": {"message": …}}`."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
