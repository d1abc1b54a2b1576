"""Limits on a tenant's requests and tokens per minute, over all routers: two token buckets in Redis and one script.

A bucket holds a minute's worth and fills steadily. A request takes 1 from the first and its prompt's tokens from the
second; its output tokens are taken afterwards, which may leave the bucket below zero. When Redis is slow (50 ms) or
gone, each router uses buckets of its own, with its share of the limits.
"""

import asyncio
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
from redis.asyncio import Redis

from baton.errors import Overloaded
from baton.net.redis_client import FAILURES, REDIS_ERRORS, TIMEOUT_S, Breaker
from router.http.tenants import Tenant

_EXPIRY_MS = 120_000
_MAX_LOCAL = 10_000
_TAKE = """
local limits, cost = {tonumber(ARGV[1]), tonumber(ARGV[2])}, {tonumber(ARGV[3]), tonumber(ARGV[4])}
local now = redis.call('TIME')
local now_s = tonumber(now[1]) + tonumber(now[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local elapsed_s = math.max(now_s - (tonumber(held[3]) or now_s), 0)
local left, wait_s = {}, 0
for i = 1, 2 do
  left[i] = math.min((tonumber(held[i]) or limits[i]) + limits[i] * elapsed_s / 60, limits[i])
  local short = math.min(cost[i], limits[i]) - left[i]
  if limits[i] > 0 then wait_s = math.max(wait_s, short * 60 / limits[i]) end
end
if ARGV[5] == '0' or wait_s == 0 then
  for i = 1, 2 do left[i] = left[i] - cost[i] end
  wait_s = 0
end
redis.call('HSET', KEYS[1], 'requests', left[1], 'tokens', left[2], 'at', string.format('%.6f', now_s))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return {tostring(wait_s), tostring(left[1]), tostring(left[2])}
"""


class Left(msgspec.Struct, frozen=True):
    """What is left in the buckets, and how long the request would have to wait; 0: it was admitted."""

    wait_s: float
    num_requests: float
    num_tokens: float


class RateLimited(Overloaded):
    """The tenant has reached its rate limit."""

    code = "rate_limit_exceeded"

    def __init__(self, left: Left) -> None:
        super().__init__("the rate limit of this key is reached")
        self.retry_after_s = left.wait_s
        self.left = left


class _LocalBuckets:
    """Buckets of this router alone, with the script's arithmetic, for when Redis does not answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float, float]] = {}

    def take(self, tenant: Tenant, cost: tuple[int, int], share: float, *, checks: bool) -> Left:
        now_s = self._clock()
        limits = (tenant.requests_per_minute * share, tenant.tokens_per_minute * share)
        *held, at_s = self._held.pop(tenant.name, (*limits, now_s))
        left, wait_s = [], 0.0
        for have, limit, want in zip(held, limits, cost, strict=True):
            left.append(min(have + limit * (now_s - at_s) / 60, limit))
            short = min(want, limit) - left[-1]
            if limit > 0:
                wait_s = max(wait_s, short * 60 / limit)
        if not checks or wait_s == 0:
            left, wait_s = [have - want for have, want in zip(left, cost, strict=True)], 0.0
        self._held[tenant.name] = (left[0], left[1], now_s)
        if len(self._held) > _MAX_LOCAL:
            del self._held[next(iter(self._held))]
        return Left(wait_s, *left)


class RateLimiter:
    """The limiter that all requests of a router share."""

    def __init__(
        self,
        redis: Redis,
        num_routers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_routers` returns the number of routers, among which limits are divided while Redis does not answer."""
        self._script = redis.register_script(_TAKE)
        self._num_routers = num_routers
        self._breaker = Breaker(clock=clock)
        self._local = _LocalBuckets(clock)

    async def take(self, tenant: Tenant, num_tokens: int) -> Left:
        """Charge a request with a prompt of `num_tokens`. Raises RateLimited, but nothing if Redis fails."""
        left = await self._take(tenant, (1, num_tokens), checks=True)
        if left.wait_s > 0:
            raise RateLimited(left)
        return left

    async def spend(self, tenant: Tenant, num_tokens: int) -> None:
        """Charge the tokens of an output that has been generated."""
        if num_tokens and tenant.tokens_per_minute:
            await self._take(tenant, (0, num_tokens), checks=False)

    async def _take(self, tenant: Tenant, cost: tuple[int, int], *, checks: bool) -> Left:
        if self._breaker.closed:
            limits = [tenant.requests_per_minute, tenant.tokens_per_minute]
            key = "baton:rate:" + sha256(tenant.name.encode()).hexdigest()[:32]
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    found: Any = await self._script(keys=[key], args=[*limits, *cost, int(checks), _EXPIRY_MS])
                self._breaker.succeeded()
                return Left(*map(float, found))
            except REDIS_ERRORS:
                FAILURES.labels("rate_limit").inc()
                self._breaker.failed()
        return self._local.take(tenant, cost, 1 / max(self._num_routers(), 1), checks=checks)
