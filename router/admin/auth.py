"""Access control of the admin port: an API key or the service token; without keys, any process on this host.

A browser signs in with a key once and gets a session cookie, which is valid for this router process only. Where no key
is required, requests must name a loopback host. This defeats DNS rebinding, by which a web page elsewhere could read
the port.
"""

import hmac
import secrets
import time
from collections.abc import Callable

from baton.errors import BatonError, Unauthenticated
from baton.net.rpc import is_loopback
from router.http.auth import APIKeys

COOKIE = "baton_session"
SESSION_S = 12 * 3600


class WrongHost(BatonError):
    """The request names a host other than loopback, although no key is required."""

    status = 403
    type = "invalid_request_error"
    code = "wrong_host"


class AdminAuth:
    """Checks all requests to the admin port, except those to its login."""

    def __init__(self, host: str, keys: APIKeys, service_token: str, clock: Callable[[], float] = time.time) -> None:
        """Access is open if there are no keys and the port listens on loopback only."""
        self.is_open = not keys and is_loopback(host)
        self._keys, self._token, self._clock = keys, service_token, clock
        self._secret = secrets.token_bytes(32)

    def check(self, authorization: str, cookie: str, host: str) -> None:
        """Check a request's headers. Raises Unauthenticated or WrongHost."""
        if self.is_open:
            if not is_loopback(_name(host)):
                raise WrongHost("this port answers to 127.0.0.1 and localhost only")
            return
        scheme, _, given = authorization.partition(" ")
        if not (scheme.lower() == "bearer" and self.knows(given.strip())) and not self._is_session(cookie):
            raise Unauthenticated("sign in at /login, or send Authorization: Bearer <API key or service token>")

    def knows(self, key: str) -> bool:
        """Whether `key` is an API key or the service token."""
        is_token = hmac.compare_digest(key.encode(), self._token.encode()) and bool(self._token)
        return self._is_api_key(key) or is_token

    def new_cookie(self) -> str:
        """Return a Set-Cookie header for a new session. The caller has checked the key with `knows`."""
        until = str(int(self._clock()) + SESSION_S)
        return f"{COOKIE}={until}.{self._sign(until)}; Max-Age={SESSION_S}; Path=/; HttpOnly; SameSite=Strict"

    def _is_api_key(self, key: str) -> bool:
        if not self._keys or not key:
            return False
        try:
            self._keys.tenant(f"Bearer {key}")
        except BatonError:
            return False
        return True

    def _is_session(self, cookies: str) -> bool:
        for cookie in cookies.split(";"):
            name, _, value = cookie.strip().partition("=")
            until, _, signature = value.partition(".")
            if name == COOKIE and until.isascii() and until.isdigit():
                is_ours = hmac.compare_digest(signature.encode(), self._sign(until).encode())
                if is_ours and int(until) > self._clock():
                    return True
        return False

    def _sign(self, until: str) -> str:
        return hmac.digest(self._secret, until.encode(), "sha256").hex()


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host if ":" in host else host
