"""What an HTTP request may do and what it used: its tenant's limits, rates and usage, for all endpoints."""

import asyncio
import math

from baton.errors import ModelNotFound
from baton.telemetry.unlocked import Counter
from router.http.error_format import Header
from router.http.rate_limit import Left, RateLimited, RateLimiter
from router.http.tenants import ANYBODY, Tenant

MAX_NAMES = 1000  # in metrics; tenants beyond that are counted together

_REQUESTS = Counter("baton_tenant_requests", "Requests by the name of their key", ["tenant", "outcome"])
_TOKENS = Counter("baton_tenant_tokens", "Tokens by the name of their key", ["tenant", "kind"])
_names: set[str] = set()
_spending: set[asyncio.Task[None]] = set()


class Account:
    """Made for each HTTP request, of the tenant whose key it brought."""

    def __init__(self, tenant: Tenant = ANYBODY, limiter: RateLimiter | None = None) -> None:
        self.tenant = tenant
        self.headers: list[Header] = []  # for the answer, whatever it is
        self._limiter = limiter if tenant.is_limited else None

    async def admit(self, model: str, num_prompt_tokens: int) -> None:
        """Raises ModelNotFound for a model that the key may not use, and RateLimited."""
        tenant = self.tenant
        if tenant.models and model not in tenant.models:
            raise ModelNotFound(f"the model {model!r} does not exist, or this key may not use it", param="model")
        if self._limiter is None:
            return
        try:
            self._describe(await self._limiter.take(tenant, num_prompt_tokens))
        except RateLimited as error:
            self._describe(Left(error.retry_after_s, 0, 0))
            raise

    def max_tokens(self, wanted: int) -> int:
        """As many output tokens of those wanted as the key allows."""
        return min(wanted, self.tenant.max_tokens) if self.tenant.max_tokens else wanted

    def used(self, num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int, *, is_good: bool) -> None:
        """Count what a request took that is over, and take its output from the key's rate."""
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
                full_s = max((limit - have) * 60 / limit, 0.0)
                for what, value in (
                    ("limit", str(limit)),
                    ("remaining", str(max(math.floor(have), 0))),
                    ("reset", f"{full_s:.3f}s"),
                ):
                    self.headers.append((f"x-ratelimit-{what}-{kind}".encode(), value.encode()))


NOBODY = Account()  # before anybody is known


def _bounded(name: str) -> str:
    if name not in _names and len(_names) >= MAX_NAMES:
        return "other"
    _names.add(name)
    return name
