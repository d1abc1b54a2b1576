"""What commands need to ask an endpoint with the standard library's HTTP, which starts in no time."""

import http.client
import json
from urllib.parse import SplitResult


def connection(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """Opened with its first request."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=timeout_s)


def error_message(body: bytes, otherwise: str) -> str:
    """Of `{"error": {"message": …}}`."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
