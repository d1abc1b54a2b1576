import asyncio
import time
from typing import Any

import pytest

from baton.net import redis_client
from router.http import account as accounts
from router.http import rate_limit
from router.http.account import Account
from router.http.rate_limit import RateLimited, RateLimiter
from router.http.tenants import Tenant

pytestmark = pytest.mark.anyio

TENANT = Tenant(name="search", requests_per_minute=60, tokens_per_minute=6000)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def num_taken(*limiters: RateLimiter, tenant: Tenant = TENANT, num_tokens: int = 10, tries: int = 200) -> int:
    taken = 0
    for i in range(tries):
        try:
            await limiters[i % len(limiters)].take(tenant, num_tokens)
            taken += 1
        except RateLimited:
            pass
    return taken


async def test_routers_share_a_bucket(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "TIMEOUT_S", 5.0)  # not reached, even if the machine stalls
    clients = [redis_client.connect(redis_url, timeout_s=5.0) for _ in range(2)]
    limiters = [RateLimiter(client, lambda: 2) for client in clients]
    began = time.monotonic()
    counts = await asyncio.gather(*(num_taken(limiter) for limiter in limiters))
    assert 60 <= sum(counts) <= 60 + 2 + (time.monotonic() - began)
    with pytest.raises(RateLimited) as refusal:
        await limiters[0].take(TENANT, 10)
    assert 0 < refusal.value.retry_after_s <= 1
    for client in clients:
        await client.aclose()


async def test_redis_and_a_router_without_redis_count_alike(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "TIMEOUT_S", 5.0)
    tenant = Tenant(name="compared", requests_per_minute=6, tokens_per_minute=600)
    client, clock = redis_client.connect(redis_url, timeout_s=5.0), Clock()
    shared, alone = RateLimiter(client, lambda: 1), rate_limit._LocalBuckets(clock)
    for elapsed_s, cost, checks in (
        (0, (1, 100), True),
        (0, (1, 550), True),  # too many tokens
        (0, (0, 550), False),
        (60, (1, 450), True),
        (0, (1, 2000), True),
        (600, (1, 2000), True),  # larger than the bucket, which is full
        (600, (5, 500), True),
        (0, (4, 200), True),  # waits for requests longer than for tokens
        (-30, (1, 50), True),  # Redis's clock is set back
    ):
        clock.now_s += max(elapsed_s, 0)
        for key in await client.keys("baton:rate:*"):
            await client.hincrbyfloat(key, "at", -elapsed_s)
            assert 0 < await client.pttl(key) <= 120_000
        told = await shared._take(tenant, cost, checks=checks)
        expected = alone.take(tenant, cost, 1.0, checks=checks)
        assert told.wait_s == pytest.approx(expected.wait_s, abs=3)  # time goes on meanwhile
        assert told.num_requests == pytest.approx(expected.num_requests, abs=0.3)
        assert told.num_tokens == pytest.approx(expected.num_tokens, abs=30)
    await client.aclose()


@pytest.fixture
async def alone() -> Any:
    """A limiter without a reachable Redis, and its clock."""
    clock, client = Clock(), redis_client.connect("redis://127.0.0.1:1/0")
    yield RateLimiter(client, lambda: 2, clock), clock
    await client.aclose()


async def test_without_redis_a_router_uses_its_share_of_the_limit(alone: Any) -> None:
    limiter, clock = alone
    failures = redis_client.FAILURES.labels("rate_limit")._value.get()
    assert await num_taken(limiter) == 30
    assert redis_client.FAILURES.labels("rate_limit")._value.get() > failures
    clock.now_s += 10
    assert await num_taken(limiter) == 5
    clock.now_s += 1000
    assert await num_taken(limiter) == 30


async def test_output_tokens_are_charged_after_they_are_generated(alone: Any) -> None:
    limiter, clock = alone
    assert await num_taken(limiter, num_tokens=1000) == 3
    clock.now_s += 60
    for num_tokens in (3400, 100):
        await limiter.spend(TENANT, num_tokens)
    with pytest.raises(RateLimited) as refusal:
        await limiter.take(TENANT, 500)
    assert refusal.value.retry_after_s == pytest.approx((500 + 500) * 60 / 3000)
    clock.now_s += refusal.value.retry_after_s
    await limiter.take(TENANT, 500)
    clock.now_s += 120
    await limiter.take(TENANT, 10**6)  # larger than the bucket: when that is full


async def test_tenants_are_counted_separately_and_unlimited_ones_not_at_all(alone: Any) -> None:
    limiter, _ = alone
    await num_taken(limiter)
    assert await num_taken(limiter, tenant=Tenant(name="other", requests_per_minute=4)) == 2
    only_tokens = Tenant(name="third", tokens_per_minute=2000)
    assert await num_taken(limiter, tenant=only_tokens, num_tokens=1) == 200


async def test_headers_of_an_account_say_what_is_left(alone: Any) -> None:
    limiter, _ = alone
    account = Account(Tenant(name="search", requests_per_minute=4, tokens_per_minute=2000), limiter)
    await account.admit("tiny", 100)
    assert dict(account.headers)[b"x-ratelimit-limit-requests"] == b"4"
    assert dict(account.headers)[b"x-ratelimit-remaining-requests"] == b"1"  # of this router's half
    assert dict(account.headers)[b"x-ratelimit-reset-requests"] == b"45.000s"
    assert dict(account.headers)[b"x-ratelimit-remaining-tokens"] == b"900"
    account.used(100, 0, 1050, is_good=True)
    await asyncio.gather(*accounts._spending)
    await asyncio.sleep(0)
    assert not accounts._spending
    with pytest.raises(RateLimited):
        await account.admit("tiny", 100)
    assert dict(account.headers)[b"x-ratelimit-remaining-requests"] == b"1"
    assert dict(account.headers)[b"x-ratelimit-remaining-tokens"] == b"0"  # not below 0, though 150 are owed


def test_tenants_beyond_the_limit_of_names_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_NAMES", 2)
    monkeypatch.setattr(accounts, "_names", set())
    assert [accounts._bounded(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


async def test_retry_after_is_the_longer_wait_if_both_limits_are_reached(alone: Any) -> None:
    limiter, _ = alone
    tenant = Tenant(name="both", requests_per_minute=2, tokens_per_minute=2000)
    await limiter.take(tenant, 1000)
    with pytest.raises(RateLimited) as refusal:
        await limiter.take(tenant, 100)
    assert refusal.value.retry_after_s == pytest.approx(60)


async def test_without_redis_the_number_of_remembered_tenants_is_limited(
    alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "_MAX_LOCAL", 3)
    limiter, _ = alone
    for n in range(6):
        await limiter.take(Tenant(name=f"t{n % 5}", requests_per_minute=60), 1)
    assert list(limiter._local._held) == ["t3", "t4", "t0"]
