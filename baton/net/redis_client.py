"""Access to Redis, which holds only hints: it may be slow, empty or gone without holding up a request.

A call takes 50 ms at most or fails; nothing is retried; after a failure a `Breaker` makes callers skip it for a while.
`registry` and `prefix_index` define what Redis holds.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from prometheus_client import Counter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from baton.errors import ConfigError
from baton.net.failure import reason

TIMEOUT_S = 0.05
PATIENCE_S = 60.0  # how long a service that starts waits for Redis
_CHECK_TIMEOUT_S = 2.0
_RETRY_S = 0.5

_log = logging.getLogger(__name__)

REDIS_ERRORS = (RedisError, OSError)
"""The exceptions that a call may raise; OSError includes TimeoutError."""

FAILURES = Counter("baton_redis_failures", "Calls to Redis that failed or took too long", ["caller"])


def connect(url: str, timeout_s: float = TIMEOUT_S) -> Redis:
    """Return a client that connects at first use. A call that fails raises REDIS_ERRORS within about `timeout_s`."""
    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        max_connections=16,
        lib_name=None,  # saves two round trips for each new connection
        lib_version=None,
    )


async def check(url: str, patience_s: float = 0.0) -> None:
    """Wait until a usable Redis answers at `url`. Raises ConfigError if none does within `patience_s`.

    The error names host and port, but never the password.
    """
    try:
        redis = connect(url, timeout_s=_CHECK_TIMEOUT_S)
    except ValueError as error:
        raise ConfigError(f"redis url: {error}") from None
    at = redis.connection_pool.connection_kwargs
    where = at["path"] if "path" in at else f"{at.get('host', 'localhost')}:{at.get('port', 6379)}"
    give_up_s = time.monotonic() + patience_s
    waiting = False
    try:
        while (missing := await _missing(redis, where)) is not None:
            if time.monotonic() >= give_up_s:
                raise ConfigError(missing)
            if not waiting:
                _log.warning("%s; waiting for it for %.0f s", missing, patience_s)
                waiting = True
            await asyncio.sleep(_RETRY_S)
    finally:
        await redis.aclose()


async def _missing(redis: Redis, where: str) -> str | None:
    """Return an error message if Redis does not answer, else None. Raises ConfigError if it refuses the password."""
    try:
        await redis.exists("baton")  # unlike PING, this needs the password
    except AuthenticationError:
        raise ConfigError(f"Redis at {where} refuses the password (or the lack of one) in the redis url") from None
    except ResponseError as error:  # no such database, no permission, or a cluster that is not whole yet
        return f"Redis at {where} refuses: {error}"
    except REDIS_ERRORS as error:
        return f"no Redis answers at {where}: {reason(error.__cause__ or error.__context__ or error)}"
    return None


class Breaker:
    """Allows calls until one fails, then none for `base_s`, doubling up to `limit_s` while they keep failing."""

    def __init__(self, base_s: float = 0.5, limit_s: float = 8.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._base_s = base_s
        self._limit_s = limit_s
        self._clock = clock
        self._pause_s = base_s
        self._open_until = float("-inf")

    @property
    def closed(self) -> bool:
        """Whether a call may be tried now."""
        return self._clock() >= self._open_until

    def failed(self) -> None:
        """Report a failed call."""
        self._open_until = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._limit_s)

    def succeeded(self) -> None:
        """Report a successful call."""
        self._pause_s = self._base_s
        self._open_until = float("-inf")
