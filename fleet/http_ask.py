"""Helpers for commands that query an endpoint with the standard library's HTTP, which is quick to import."""

import http.client
import json
from urllib.parse import SplitResult


def connection(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """Return a connection for this URL; it is opened by its first request."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=timeout_s)


def error_message(body: bytes, otherwise: str) -> str:
    """Return the message of `{"error": {"message": …}}`, or `otherwise`."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
