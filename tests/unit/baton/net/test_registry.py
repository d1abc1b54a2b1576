import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from baton.errors import ConfigError
from baton.net import redis_client, registry
from baton.net.redis_client import Breaker
from baton.net.registry import NodeRecord, Registration, list_nodes, mint_epoch

pytestmark = pytest.mark.anyio


def record(node_id: str = "decode-0", **fields: Any) -> NodeRecord:
    return NodeRecord(node_id=node_id, **{"role": "decode", "epoch": 7, "address": "127.0.0.1:1", **fields})


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.01)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = redis_client.connect(redis_url, timeout_s=2.0)
    yield client
    await client.aclose()


async def test_registered_nodes_are_listed_until_they_stop(redis: Redis) -> None:
    registration = Registration(redis, record(models=("tiny",), num_blocks=8))
    await registration.start()
    assert await list_nodes(redis) == [record(models=("tiny",), num_blocks=8)]
    await registration.stop()
    await registration.stop()
    assert await list_nodes(redis) == []


async def test_a_new_state_is_written_at_once_and_load_with_the_next_renewal(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RENEWAL_S", 10.0)
    registration = Registration(redis, record())
    await registration.start()
    registration.update(num_running=3)
    registration.update(state="draining")
    began = time.monotonic()

    async def draining() -> bool:
        return [(node.state, node.num_running) for node in await list_nodes(redis)] == [("draining", 3)]

    await eventually(draining)
    assert time.monotonic() - began < registry.RENEWAL_S / 2
    await registration.stop()


async def test_the_record_of_a_silent_node_expires(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LEASE_MS", 60)
    await Registration(redis, record())._renew()
    assert len(await list_nodes(redis)) == 1

    async def gone() -> bool:
        return await list_nodes(redis) == []

    await eventually(gone, 2.0)
    assert await redis.scard("baton:nodes") == 0  # the index of names is swept too


async def test_the_record_of_the_later_epoch_wins(redis: Redis) -> None:
    old, new = Registration(redis, record(epoch=1)), Registration(redis, record(epoch=2))
    await new.start()
    await old._renew()  # a frozen predecessor wakes up
    assert [node.epoch for node in await list_nodes(redis)] == [2]
    await old.deregister()
    assert [node.epoch for node in await list_nodes(redis)] == [2]
    await new.stop()


async def test_renewal_survives_a_restart_of_redis(redis_server: Any) -> None:
    client = redis_client.connect(redis_server.url)
    registration = Registration(client, record())
    await registration.start()
    redis_server.kill()
    registration.update(num_running=1)
    with pytest.raises(redis_client.REDIS_ERRORS):
        await list_nodes(client)
    redis_server.start()

    async def back() -> bool:
        try:
            return [node.num_running for node in await list_nodes(client)] == [1]
        except redis_client.REDIS_ERRORS:
            return False

    await eventually(back)
    await registration.stop()
    await client.aclose()


async def test_only_a_lapsed_lease_is_logged_and_only_once(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = redis_client.connect(redis_server.url)
    registration = Registration(client, record())
    await registration._renew()
    redis_server.kill()
    await registration._renew()
    assert not caplog.messages
    monkeypatch.setattr(registry, "LEASE_S", 0.0)
    await registration._renew()
    await registration._renew()
    assert len(caplog.messages) == 1
    assert "decode-0 has lapsed" in caplog.messages[0]
    await client.aclose()


async def test_an_unreadable_record_is_left_out(redis: Redis) -> None:
    await redis.hset("baton:node:strange", "record", b"\xc1")
    await redis.sadd("baton:nodes", "strange")
    await Registration(redis, record())._renew()
    assert [node.node_id for node in await list_nodes(redis)] == ["decode-0"]


async def test_a_call_to_a_frozen_redis_ends_at_its_timeout(redis_server: Any) -> None:
    client = redis_client.connect(redis_server.url)
    await list_nodes(client)
    redis_server.freeze()
    began = time.monotonic()
    with pytest.raises(redis_client.REDIS_ERRORS):
        await list_nodes(client)
    assert time.monotonic() - began < 1.0
    redis_server.thaw()
    await client.aclose()


async def test_check_explains_the_problem_without_the_password(redis_server: Any) -> None:
    await redis_client.check(redis_server.url)
    with pytest.raises(ConfigError, match="no Redis answers"):
        await redis_client.check("redis://127.0.0.1:1/0")
    with pytest.raises(ConfigError, match="redis url"):
        await redis_client.check("http://127.0.0.1")
    with pytest.raises(ConfigError, match=r"no Redis answers at /no/such\.sock: "):
        await redis_client.check("unix:///no/such.sock")
    with pytest.raises(ConfigError, match=r"refuses: DB index is out of range"):
        await redis_client.check(f"{redis_server.url.removesuffix('/0')}/99")
    redis_server.kill()
    redis_server.start("--requirepass", "right")
    for password in ("", ":wrong-secret@"):
        with pytest.raises(ConfigError, match="password") as caught:
            await redis_client.check(redis_server.url.replace("//", f"//{password}"))
        assert "wrong-secret" not in str(caught.value)


async def test_check_waits_up_to_its_patience(redis_server: Any) -> None:
    redis_server.kill()
    waiting = asyncio.create_task(redis_client.check(redis_server.url, patience_s=30.0))
    with pytest.raises(ConfigError, match="no Redis answers"):
        await redis_client.check(redis_server.url, patience_s=0.2)
    assert not waiting.done()
    await asyncio.to_thread(redis_server.start)
    async with asyncio.timeout(10):
        await waiting


async def test_the_breaker_doubles_its_pause_until_a_success() -> None:
    now = 0.0
    breaker = Breaker(base_s=1.0, limit_s=3.0, clock=lambda: now)
    pauses = []
    for _ in range(4):
        assert breaker.closed
        breaker.failed()
        began = now
        while not breaker.closed:
            now += 0.5
        pauses.append(now - began)
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    breaker.succeeded()
    assert breaker.closed
    breaker.failed()
    now += 1.0
    assert breaker.closed


def test_epochs_grow_and_fit_a_double() -> None:
    first = mint_epoch()
    while (second := mint_epoch()) == first:
        pass
    assert first < second < 2**53
