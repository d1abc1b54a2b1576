"""Tenants, which are the owners of API keys with their limits, and the file that defines them.

A line of the file is a key, or `sha256:` and its hex digest, or a JSON object with either of them and options:

    {"sha256": "9f86…", "name": "search", "models": ["tiny"], "requests_per_minute": 600, "tokens_per_minute": 200000,
     "priority": "high", "max_tokens": 512, "max_ttft_s": 2.0, "cache_group": "team-a"}

Keys are hashed when read; the keys themselves are not kept.
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from baton.errors import ConfigError
from router.placing.admission import CLASSES

_SALT_BYTES = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_FILE_BYTES = 16 * 2**20


class KeyLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line as JSON. Either `key` or `sha256` must be given. A limit of zero means no limit."""

    key: str = ""
    sha256: str = ""
    name: str = ""
    models: list[str] = []
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    priority: Literal["high", "normal", "low"] = "normal"
    max_tokens: int = 0
    max_ttft_s: float = 0.0
    cache_isolation: bool = True
    cache_group: str = ""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a key. Zero, or an empty set, means no limit."""

    name: str = ""  # for metrics and fair queueing; never the key, nor anything from which it could be recovered
    salt: bytes = b""  # goes into the hashes of its KV blocks
    models: frozenset[str] = frozenset()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0  # of prompts and outputs
    priority: int = CLASSES.index("normal")
    max_tokens: int = 0  # per output
    max_ttft_s: float = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether it has a rate limit."""
        return bool(self.requests_per_minute or self.tokens_per_minute)


ANYBODY = Tenant()  # every client, if there are no keys


def digest_of(key: str) -> bytes:
    """Return the digest of a key, which is all that is kept of it."""
    return sha256(key.encode()).digest()


def tenant_of(line: KeyLine) -> tuple[bytes, Tenant]:
    """Return the digest of a line's key, and its tenant. Raises ValueError, whose message does not contain the key."""
    if bool(line.key) == bool(line.sha256):
        raise ValueError("give one of key and sha256")
    if line.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", line.sha256):
        raise ValueError("sha256 is not 64 hexadecimal digits")
    if line.name and not _NAME.fullmatch(line.name):
        raise ValueError("name takes 1 to 64 letters, digits, dots, dashes and underscores")
    if min(line.requests_per_minute, line.tokens_per_minute, line.max_tokens, line.max_ttft_s) < 0:
        raise ValueError("a limit is below zero")
    digest = bytes.fromhex(line.sha256) if line.sha256 else digest_of(line.key)
    return digest, Tenant(
        name=line.name or "key-" + sha256(b"baton.name" + digest).hexdigest()[:8],
        salt=_salt(line, digest),
        models=frozenset(line.models),
        requests_per_minute=line.requests_per_minute,
        tokens_per_minute=line.tokens_per_minute,
        priority=CLASSES.index(line.priority),
        max_tokens=line.max_tokens,
        max_ttft_s=line.max_ttft_s,
    )


def read(path: Path) -> dict[bytes, Tenant]:
    """Read the tenants of a file, by digest. Raises ConfigError that names the line but not its contents."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"--api-key-file: {path}: {error.strerror}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(f"--api-key-file: {path} is larger than {_MAX_FILE_BYTES} bytes")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                digest, tenant = tenant_of(_parse(line.strip()))
            except (ValueError, msgspec.MsgspecError) as error:
                raise ConfigError(f"--api-key-file: {path}, line {number}: {error}") from None
            found[digest] = tenant
    if not found:
        raise ConfigError(f"--api-key-file: {path} holds no key")
    return found


def _parse(line: str) -> KeyLine:
    if line.startswith("{"):
        return msgspec.json.decode(line, type=KeyLine)
    if line.startswith("sha256:"):
        return KeyLine(sha256=line.removeprefix("sha256:"))
    return KeyLine(key=line)


def _salt(line: KeyLine, digest: bytes) -> bytes:
    if line.cache_group:
        return sha256(b"baton.cache-group" + line.cache_group.encode()).digest()[:_SALT_BYTES]
    if not line.cache_isolation:
        return sha256(b"baton.cache-shared").digest()[:_SALT_BYTES]
    return sha256(b"baton.tenant" + digest).digest()[:_SALT_BYTES]
