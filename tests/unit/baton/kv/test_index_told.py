"""What one node tells Redis, and when. What routers make of it: `router.placing.test_prefix_replica`."""

import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from baton.kv import index_writer, prefix_index
from baton.kv.index_writer import IndexWriter
from baton.kv.prefix_hash import BlockHash, block_hashes, root_hash
from baton.net import redis_client

pytestmark = pytest.mark.anyio

MODEL, NODE = "cafe", ("n", 1)
CHAIN = block_hashes(range(16), 1, root_hash(MODEL))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = redis_client.connect(redis_url, timeout_s=2)
    yield redis
    await redis.aclose()


def make(redis: Redis, num_cached: int) -> IndexWriter:
    async def snapshot() -> list[BlockHash]:
        return CHAIN[:num_cached]

    return IndexWriter(redis, MODEL, *NODE, snapshot)


async def told(redis: Redis, num_blocks: int) -> None:
    """Return when Redis knows of so many blocks."""
    deadline = time.monotonic() + 10
    while await prefix_index.lookup(redis, MODEL, dict([NODE]), CHAIN) != {"n": num_blocks}:
        assert time.monotonic() < deadline


async def test_changes_are_told_at_once_and_all_of_it_to_a_redis_that_has_forgotten(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "RENEWAL_S", 60.0)
    writer = make(redis, 5)
    await writer.start()
    await told(redis, 5)
    writer.put(CHAIN[5:7], [])
    await told(redis, 7)
    writer.put([], CHAIN[3:7])
    await told(redis, 3)
    await redis.flushall()
    writer.put(CHAIN[3:4], [])
    await told(redis, 5)  # its snapshot's
    await writer.stop()


async def test_who_stops_takes_its_own_blocks_away_and_nothing_else(redis: Redis) -> None:
    writer = make(redis, 5)
    await writer.start()
    await told(redis, 5)
    await writer.stop()
    await writer.stop()
    assert await redis.keys("baton:prefix:*") == [b"baton:prefix:cafe:events"]  # others' changes are in there, too
