"""API keys. If there are any, every route requires one; if not, every client is served.

Keys are stored and compared as hashes, and never logged. Unless its line says otherwise, each key is a tenant of its
own: its salt goes into the hashes of KV blocks, so no tenant can tell by timing what another one has asked. The file is
read again when it has changed; if it cannot be read, the keys stay as they are.
"""

import asyncio
import hmac
import logging
from collections.abc import Iterable
from pathlib import Path

from baton.errors import ConfigError, Unauthenticated
from router.http import tenants
from router.http.tenants import ANYBODY, KeyLine, Tenant

POLL_S = 1.0

_log = logging.getLogger(__name__)


class APIKeys:
    """The keys that this fleet accepts."""

    def __init__(self, keys: Iterable[str], key_file: str = "") -> None:
        """`keys` are valid in addition to those of the file. Raises ConfigError if the file cannot be used."""
        self._inline = dict(tenants.tenant_of(KeyLine(key=key)) for key in keys)
        self._path = Path(key_file) if key_file else None
        self._stamp = self._look()
        self._tenants = {**(tenants.read(self._path) if self._path else {}), **self._inline}

    @classmethod
    def load(cls, key_file: str, inline: str) -> "APIKeys":
        """Load the keys of a file (its format: `tenants`) and of a comma-separated list."""
        keys = [key.strip() for key in inline.split(",")]
        return cls([key for key in keys if key], key_file)

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant(self, authorization: str) -> Tenant:
        """Check an `Authorization` header and return its tenant. Raises Unauthenticated."""
        if not self._tenants:
            return ANYBODY
        scheme, _, key = authorization.partition(" ")
        given = tenants.digest_of(key.strip())
        found = None
        for digest, tenant in self._tenants.items():  # always all of them, so that timing reveals nothing
            if hmac.compare_digest(given, digest):
                found = tenant
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated("a valid API key is needed: Authorization: Bearer <key>")
        return found

    async def watch(self) -> None:
        """Reload the file whenever it changes, until cancelled. Returns at once if there is no file."""
        while self._path is not None:
            await asyncio.sleep(POLL_S)
            self.reload()

    def reload(self) -> None:
        """Read the file if it has changed."""
        stamp = self._look()
        if self._path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tenants = {**tenants.read(self._path), **self._inline}
            _log.info("%d API keys are valid now", len(self._tenants))
        except ConfigError as error:
            _log.error("the API keys stay as they were: %s", error.message)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return status and (status.st_mtime_ns, status.st_size, status.st_ino)
