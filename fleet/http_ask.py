"""Queries to endpoints with the standard library's HTTP, which is quick to import."""

import http.client
import json

from baton.net.failure import reason
from baton.net.url import http_url

_MAX_BYTES = 16 * 2**20


def connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection, opened by its first request, and the path in `url`. Raises ConfigError."""
    parts = http_url(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s), parts.path.rstrip("/")


def get(url: str, path: str, key: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body of a GET. `key` may be empty. Raises OSError if nobody answers in HTTP."""
    opened, base_path = connection(url, timeout_s)
    try:
        opened.request("GET", base_path + path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = opened.getresponse()
        return response.status, response.read(_MAX_BYTES)
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(reason(error)) from None
    finally:
        opened.close()


def scrape(url: str, key: str, timeout_s: float) -> str:
    """Return a service's Prometheus page. Raises OSError if it does not answer with one."""
    status, page = get(url, "", key, timeout_s)
    if status != 200:
        raise ConnectionError(f"{url} answers {status}")
    return page.decode(errors="replace")


def error_message(body: bytes, otherwise: str) -> str:
    """Return the message of `{"error": {"message": …}}`, or `otherwise`."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
