"""Fetches a service's Prometheus page, for commands that need a figure or two."""

import http.client
import urllib.request

from baton.net.failure import reason


def scrape(url: str, key: str, timeout_s: float) -> str:
    """Return the page. `key` may be empty. Raises OSError if the service does not answer with one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - of the fleet's own, or named by the operator
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            page: bytes = answer.read()
        return page.decode()
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"{url}: {reason(error)}") from None
