import asyncio
from typing import Any

import pytest

from baton.kv import index_writer, prefix_index
from baton.kv.prefix_hash import BlockHash
from baton.net import redis_client
from tests.unit.index_clients import CHAIN, MODEL, Clients, found_by_script
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_script_finds_the_longest_prefix_of_each_node(clients: Clients) -> None:
    lengths = {f"n{length}": length for length in (0, 1, 2, 255, 511, 512)}
    for name, length in lengths.items():
        await clients.node(name, num_blocks=length)
    await found_by_script(clients, dict.fromkeys(lengths, 1), lengths)
    assert await prefix_index.lookup(clients.patient, MODEL, {"n512": 1}, CHAIN[:1]) == {"n512": 1}


async def test_a_block_evicted_and_stored_in_one_step_stays_in_the_index(clients: Clients) -> None:
    node = await clients.node("a", num_blocks=3)
    node.put(CHAIN[2:3], CHAIN[2:3])
    await found_by_script(clients, {"a": 1}, {"a": 3})


async def test_blocks_of_a_silent_node_expire(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_writer, "LEASE_S", 0.1)
    monkeypatch.setattr(index_writer, "RENEWAL_S", 100.0)
    await clients.node("a", num_blocks=5)
    await found_by_script(clients, {"a": 1}, {"a": 5})
    await found_by_script(clients, {"a": 1}, {"a": 0})


async def test_a_stopped_writer_removes_only_its_own_blocks(clients: Clients) -> None:
    node = await clients.node("a", num_blocks=5)
    await found_by_script(clients, {"a": 1}, {"a": 5})
    await node.writer.stop()
    await node.writer.stop()
    await found_by_script(clients, {"a": 1}, {"a": 0})
    assert await clients.patient.keys("baton:prefix:*") == [b"baton:prefix:cafe:events"]  # others' changes are in there


async def test_changes_are_written_at_once_and_a_snapshot_after_redis_was_emptied(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "RENEWAL_S", 60.0)
    node = await clients.node("a", num_blocks=5)
    await found_by_script(clients, {"a": 1}, {"a": 5})
    node.put(CHAIN[5:7], [])
    await found_by_script(clients, {"a": 1}, {"a": 7})
    node.put([], CHAIN[3:7])
    await found_by_script(clients, {"a": 1}, {"a": 3})
    await clients.patient.flushall()
    node.put(CHAIN[3:4], [])
    await found_by_script(clients, {"a": 1}, {"a": 4})  # its snapshot's, too


async def test_too_many_pending_changes_are_replaced_by_a_snapshot(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await clients.node("a", num_blocks=1)
    await found_by_script(clients, {"a": 1}, {"a": 1})
    monkeypatch.setattr(index_writer, "MAX_PENDING_BLOCKS", 8)
    node.put(CHAIN[1:100], [])
    assert len(node.writer._pending) <= 8
    await found_by_script(clients, {"a": 1}, {"a": 100})
    assert node.num_snapshots == 2


async def test_changes_made_while_a_snapshot_is_taken_are_written_after_it(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken on the step thread, and the next step may be over before the writer has it."""
    monkeypatch.setattr(index_writer, "RENEWAL_S", 60.0)
    node = await clients.node("a", num_blocks=3)
    await found_by_script(clients, {"a": 1}, {"a": 3})

    async def snapshot() -> set[BlockHash]:
        blocks = set(node.blocks)
        node.put(CHAIN[4:6], [])
        return blocks

    node.writer._snapshot = snapshot
    await clients.patient.flushall()
    node.put(CHAIN[3:4], [])
    await found_by_script(clients, {"a": 1}, {"a": 6})


async def test_many_blocks_are_written_in_several_scripts(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_writer, "MAX_SCRIPT_BLOCKS", 100)
    node = await clients.node("a", num_blocks=450)
    await found_by_script(clients, {"a": 1}, {"a": 450})
    node.put(CHAIN[450:], [])
    await found_by_script(clients, {"a": 1}, {"a": 512})
    node.put([], CHAIN[150:])
    await found_by_script(clients, {"a": 1}, {"a": 150})


async def test_blocks_of_a_live_node_outlast_their_lease(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_writer, "LEASE_S", 0.3)
    monkeypatch.setattr(index_writer, "RENEWAL_S", 0.05)
    await clients.node("a", num_blocks=5)
    await asyncio.sleep(3 * index_writer.LEASE_S)
    await found_by_script(clients, {"a": 1}, {"a": 5})


async def test_a_snapshot_that_failed_is_written_again_in_full(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "RENEWAL_S", 0.05)
    node = await clients.node("a", num_blocks=100)
    await found_by_script(clients, {"a": 1}, {"a": 100})
    script, lost = node.writer._script, []

    async def lose_one(**how: Any) -> Any:
        if not lost:
            lost.append(how)
            raise ConnectionError("reset by peer")
        return await script(**how)

    monkeypatch.setattr(node.writer, "_script", lose_one)
    monkeypatch.setattr(index_writer, "MAX_PENDING_BLOCKS", 8)
    node.put([], CHAIN[50:100])
    await found_by_script(clients, {"a": 1}, {"a": 50})


async def test_writes_resume_after_redis_has_refused_them(killable: Clients, redis_server: Any) -> None:
    node = await killable.node("a", num_blocks=3)
    await found_by_script(killable, {"a": 1}, {"a": 3})
    failures = redis_client.FAILURES.labels("prefix_index")
    before = failures._value.get()
    await killable.patient.config_set("maxmemory", "1")
    node.put(CHAIN[3:6], [])
    await until(lambda: failures._value.get() > before)
    assert await prefix_index.lookup(killable.patient, MODEL, {"a": 1}, CHAIN) == {"a": 3}
    await killable.patient.config_set("maxmemory", "0")
    await found_by_script(killable, {"a": 1}, {"a": 6})
