"""The key with which commands ask a fleet, of a file as routers read it: plain keys, digests, JSON."""

import json
from pathlib import Path

from baton.errors import ConfigError


def first_key(file: str) -> str:
    """The first key of the file; empty where it holds digests alone. ConfigError where it cannot be read."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--api-key-file: {file}: {error.strerror}") from None
    return next((key for line in lines if (key := _key(line.strip()))), "")


def _key(line: str) -> str:
    if line.startswith(("#", "sha256:")):
        return ""
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line).get("key", ""))
    except ValueError:
        return ""
