"""Applies a tenant's limits to an HTTP request, and counts its usage, for all endpoints."""

import asyncio
import math

from baton.errors import ModelNotFound
from baton.telemetry.unlocked import Counter
from router.http.error_format import Header
from router.http.rate_limit import Left, RateLimited, RateLimiter
from router.http.tenants import ANYBODY, Tenant

MAX_NAMES = 1000  # tenants named in metrics; all others are counted together

_REQUESTS = Counter("baton_tenant_requests", "Requests by the name of their key", ["tenant", "outcome"])
_TOKENS = Counter("baton_tenant_tokens", "Tokens by the name of their key", ["tenant", "kind"])
_names: set[str] = set()
_spending: set[asyncio.Task[None]] = set()


class Account:
    """The account of one HTTP request, for the tenant whose key it carries."""

    def __init__(self, tenant: Tenant = ANYBODY, limiter: RateLimiter | None = None) -> None:
        self.tenant = tenant
        self.headers: list[Header] = []  # rate limit headers for the answer
        self._limiter = limiter if tenant.is_limited else None

    async def admit(self, model: str, num_prompt_tokens: int) -> None:
        """Charge the request to the tenant. Raises ModelNotFound if its key may not use the model, and RateLimited."""
        tenant = self.tenant
        if tenant.models and model not in tenant.models:
            raise ModelNotFound(f"the model {model!r} does not exist, or this key may not use it", param="model")
        if self._limiter is None:
            return
        try:
            self._describe(await self._limiter.take(tenant, num_prompt_tokens))
        except RateLimited as error:
            self._describe(error.left)
            raise

    def max_tokens(self, wanted: int) -> int:
        """Return `wanted` output tokens, or as many as the key allows."""
        return min(wanted, self.tenant.max_tokens) if self.tenant.max_tokens else wanted

    def used(self, num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int, *, is_good: bool) -> None:
        """Count the usage of a request that has ended, and charge its output to the key's rate limit."""
        if not self.tenant.name:
            return
        name = _bounded(self.tenant.name)
        _REQUESTS.labels(name, "served" if is_good else "failed").inc()
        _TOKENS.labels(name, "prompt").inc(num_prompt_tokens)
        _TOKENS.labels(name, "cached").inc(num_cached_tokens)
        _TOKENS.labels(name, "output").inc(num_output_tokens)
        if self._limiter is not None:
            task = asyncio.create_task(self._limiter.spend(self.tenant, num_output_tokens))
            _spending.add(task)
            task.add_done_callback(_spending.discard)

    def _describe(self, left: Left) -> None:
        for kind, limit, have in (
            ("requests", self.tenant.requests_per_minute, left.num_requests),
            ("tokens", self.tenant.tokens_per_minute, left.num_tokens),
        ):
            if limit:
                full_s = (limit - have) * 60 / limit
                for what, value in (
                    ("limit", str(limit)),
                    ("remaining", str(max(math.floor(have), 0))),
                    ("reset", f"{full_s:.3f}s"),
                ):
                    self.headers.append((f"x-ratelimit-{what}-{kind}".encode(), value.encode()))


NOBODY = Account()  # until the request is authenticated


def _bounded(name: str) -> str:
    if name not in _names and len(_names) >= MAX_NAMES:
        return "other"
    _names.add(name)
    return name
