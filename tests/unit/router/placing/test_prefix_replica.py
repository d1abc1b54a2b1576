import asyncio
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from baton.kv import index_writer, prefix_index
from baton.kv.prefix_hash import BlockHash
from baton.kv.prefix_index import Event
from baton.net import redis_client
from router.placing.prefix_replica import PrefixReplica
from tests.unit.index_clients import CHAIN, MODEL, Clients, found_by_script
from tests.waiting import until

pytestmark = pytest.mark.anyio


def loaded(replica: PrefixReplica) -> Callable[[], bool]:
    return lambda: all(holder.loaded for holder in replica._holders.values())


async def test_replica_equals_the_script_whatever_nodes_do(clients: Clients) -> None:
    rng = random.Random(5)
    nodes = {name: await clients.node(name, num_blocks=rng.randrange(512)) for name in ("a", "b", "c")}
    epochs = dict.fromkeys(nodes, 1)
    replica = await clients.replica()
    replica.follow(MODEL, epochs)
    for _ in range(60):
        node = nodes[rng.choice("abc")]
        length = len(node.blocks)
        if rng.random() < 0.5:
            node.put(CHAIN[length : length + rng.randrange(200)], [])
        else:
            node.put([], CHAIN[rng.randrange(length + 1) : length])
        await asyncio.sleep(rng.choice((0, 0, 0.003)))
    expected = {name: len(node.blocks) for name, node in nodes.items()}
    await found_by_script(clients, epochs, expected)
    await until(lambda: {name: len(holder.blocks) for name, holder in replica._holders.items()} == expected)
    assert await replica.lookup(CHAIN) == expected


async def test_a_cold_replica_asks_redis(clients: Clients) -> None:
    await clients.node("a", num_blocks=7)
    await found_by_script(clients, {"a": 1}, {"a": 7})
    replica = PrefixReplica(clients.fast, clients.patient)  # never started
    replica.follow(MODEL, {"a": 1})
    assert await replica.lookup(CHAIN) == {"a": 7}


async def test_flushall_is_a_miss_and_then_announced_again(clients: Clients) -> None:
    node = await clients.node("a", num_blocks=9)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    await found_by_script(clients, {"a": 1}, {"a": 9})
    await clients.patient.flushall()
    assert await prefix_index.lookup(clients.patient, MODEL, {"a": 1}, CHAIN) == {"a": 0}
    node.put(CHAIN[9:11], [])
    await found_by_script(clients, {"a": 1}, {"a": 11})
    assert node.num_snapshots == 2
    await until(lambda: len(replica._holders["a"].blocks) == 11)


async def test_restart_of_redis_is_announced_to_within_10_s(killable: Clients, redis_server: Any) -> None:
    await killable.node("a", num_blocks=20)
    replica = await killable.replica()
    replica.follow(MODEL, {"a": 1})
    await until(lambda: replica.num_blocks == 20)
    redis_server.kill()
    assert await replica.lookup(CHAIN) == {"a": 20}  # the copy goes on without Redis
    redis_server.start()
    await found_by_script_after_restart(killable)
    await until(lambda: replica.num_blocks == 20)


async def found_by_script_after_restart(clients: Clients) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            if (await prefix_index.lookup(clients.patient, MODEL, {"a": 1}, CHAIN))["a"] == 20:
                return
        except redis_client.REDIS_ERRORS:
            pass
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_nothing_of_an_older_incarnation_is_found(clients: Clients) -> None:
    old = await clients.node("a", epoch=1, num_blocks=30)
    await clients.node("a", epoch=2, num_blocks=4)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    await until(lambda: replica.num_blocks == 30)
    replica.follow(MODEL, {"a": 2})
    await until(lambda: replica.num_blocks == 4)
    old.put(CHAIN[30:40], [])  # a frozen predecessor wakes up
    await found_by_script(clients, {"a": 2}, {"a": 4})
    fence = await clients.node("fence", num_blocks=1)
    fence.put(CHAIN[1:2], [])
    replica.follow(MODEL, {"a": 2, "fence": 1})
    await until(lambda: replica.num_blocks == 6)
    assert await replica.lookup(CHAIN) == {"a": 4, "fence": 2}


async def test_a_gap_in_the_stream_makes_the_replica_load_again(clients: Clients) -> None:
    node = await clients.node("a", num_blocks=5)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    await until(lambda: replica.num_blocks == 5)
    holder = replica._holders["a"]
    holder.blocks = set()
    holder.seq -= 1  # as if the event before the next one had been trimmed away
    node.put(CHAIN[5:6], [])
    await until(lambda: holder.blocks == set(CHAIN[:6]))


async def test_late_events_change_nothing(clients: Clients) -> None:
    replica = PrefixReplica(clients.fast, clients.patient)
    replica.follow(MODEL, {"a": 1})
    holder = replica._holders["a"]
    holder.seq, holder.loaded, holder.blocks = 10, True, set(CHAIN[:3])
    replica._apply(Event("a", 1, 10, False, [], list(CHAIN[:3])))
    replica._apply(Event("a", 1, 4, True, [], []))
    replica._apply(Event("a", 2, 11, False, list(CHAIN[3:9]), []))
    replica._apply(Event("b", 1, 11, False, list(CHAIN[3:9]), []))
    assert holder.blocks == set(CHAIN[:3])
    assert holder.loaded


async def test_large_snapshots_travel_in_parts(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_writer, "MAX_SCRIPT_BLOCKS", 100)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    await clients.node("a", num_blocks=512)
    await found_by_script(clients, {"a": 1}, {"a": 512})
    await until(lambda: replica.num_blocks == 512)


async def test_the_replica_is_bounded_and_keeps_whole_prefixes(clients: Clients) -> None:
    node = await clients.node("a")
    replica = await clients.replica(max_blocks=10)
    replica.follow(MODEL, {"a": 1})
    await until(loaded(replica))
    node.put(CHAIN[:8], [])
    node.put(CHAIN[8:100], [])
    await until(lambda: replica.num_blocks == 10)
    assert await replica.lookup(CHAIN) == {"a": 10}


async def test_memory_stays_flat_however_many_distinct_blocks_come_and_go(clients: Clients) -> None:
    node = await clients.node("a")
    replica = await clients.replica(max_blocks=4096)
    replica.follow(MODEL, {"a": 1})
    await until(loaded(replica))
    random_bytes, held, peaks = random.Random(0).randbytes, [[]] * 3, []
    tracemalloc.start()
    for number in range(1, 41):
        blocks = [BlockHash(random_bytes(16)) for _ in range(1024)]
        held = [*held[1:], blocks]  # three of these at most: each takes 100 KiB
        node.put(blocks, [*node.blocks - {*held[0], *held[1]}])
        replica.expect("a", blocks)
        await until(lambda blocks=blocks: blocks[-1] in replica._holders["a"].blocks)
        assert await replica.lookup(blocks) == {"a": 1024}
        if number % 20 == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**18


async def test_a_frozen_redis_costs_50_ms_once(killable: Clients, redis_server: Any) -> None:
    await killable.fast.exists("warm")
    replica = PrefixReplica(killable.fast, killable.patient)
    replica.follow(MODEL, {"a": 1})
    redis_server.freeze()
    began = time.monotonic()
    assert await replica.lookup(CHAIN) == {}
    first = time.monotonic() - began
    began = time.monotonic()
    for _ in range(100):
        assert await replica.lookup(CHAIN) == {}
    assert first < 1.0  # 50 ms, and what a busy machine adds
    assert time.monotonic() - began < 2.5  # a hundred times 50 ms, were it asked again


async def test_an_unconfirmed_copy_is_not_used_for_ever(killable: Clients, redis_server: Any) -> None:
    now = time.monotonic()
    offset = 0.0
    await killable.node("a", num_blocks=3)
    replica = await killable.replica(clock=lambda: now + offset)
    replica.follow(MODEL, {"a": 1})
    await until(lambda: replica.num_blocks == 3)
    redis_server.freeze()
    assert await replica.lookup(CHAIN) == {"a": 3}
    offset = 31.0
    assert await replica.lookup(CHAIN) == {}


async def test_an_event_that_cannot_be_read_does_not_end_the_copy(clients: Clients) -> None:
    node = await clients.node("a", num_blocks=3)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    await until(lambda: len(replica._holders["a"].blocks) == 3)
    await clients.fast.xadd(prefix_index.events_key(MODEL), {"node": "a", "version": "another"})
    node.put(CHAIN[3:9], [])
    await until(lambda: len(replica._holders["a"].blocks) == 9)


async def test_a_node_that_is_gone_or_back_anew_begins_with_nothing(clients: Clients) -> None:
    replica = PrefixReplica(clients.fast, clients.patient)
    followed = []
    for fingerprint, nodes in [(MODEL, {"a": 1, "b": 1}), (MODEL, {"a": 1}), (MODEL, {"a": 2}), ("beef", {"a": 2})]:
        replica.follow(fingerprint, nodes)
        assert {name: holder.epoch for name, holder in replica._holders.items()} == nodes
        followed.append(replica._holders["a"])
    assert followed[0] is followed[1]
    assert len(set(followed)) == 3


async def test_what_is_loaded_again_takes_the_place_of_what_was_known(clients: Clients) -> None:
    await clients.node("a", num_blocks=4)
    replica = await clients.replica()
    replica.follow(MODEL, {"a": 1})
    holder = replica._holders["a"]
    await until(lambda: len(holder.blocks) == 4)
    holder.blocks.add(CHAIN[4])  # evicted, as an event said that was trimmed before it was read
    await replica._load(MODEL, "a", holder)
    assert holder.blocks == set(CHAIN[:4])
    assert await replica.lookup([]) == {}
