"""The address of an HTTP endpoint, as people write it."""

import re
from urllib.parse import SplitResult, urlsplit

from baton.errors import ConfigError


def http_url(text: str) -> SplitResult:
    """Return the parts of the URL; without a scheme it is `http://`. Raises ConfigError if it is not an HTTP URL."""
    try:
        parts = urlsplit(text if "//" in text else f"http://{text}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", text):
            return parts
    except ValueError:  # of a port that is no number, or of brackets
        pass
    raise ConfigError(f"{text!r} is not the address of an HTTP endpoint: write it as http://127.0.0.1:8000")
