"""API keys. Without any, every client may come; with them, every route wants one.

Keys are held and compared as hashes, and never logged. Each key is a tenant of its own: its salt goes into the
hashes of KV blocks, so that no tenant can tell by timing what another one has asked.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from baton.errors import ConfigError, Unauthenticated

_SALT_BYTES = 16


class APIKeys:
    """The keys that this fleet accepts."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def load(cls, key_file: str, inline: str) -> "APIKeys":
        """Keys of a file, one per line, and of a comma-separated list."""
        keys = [key.strip() for key in inline.split(",")]
        if key_file:
            keys += _read(Path(key_file))
        return cls(key for key in keys if key)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant_salt(self, authorization: str) -> bytes:
        """Check an `Authorization` header; the salt of whoever sent it. Raises Unauthenticated."""
        if not self._digests:
            return b""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip().encode())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever fits
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthenticated("a valid API key is needed: Authorization: Bearer <key>")
        return sha256(b"baton.tenant" + given).digest()[:_SALT_BYTES]


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"--api-key-file: {path}: {error.strerror}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file: {path} holds no key")
    return keys
