"""One suite for every transport: blocks arrive complete, or not at all."""

import asyncio
import random
import threading

import pytest
import uvloop
from kv_nodes import LAYOUT, NUM_BLOCKS, all_ready, commit, fragmented, new_pool, pair, run


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_blocks_arrive_whole(transport, loop_factory):
    async def main():
        async with pair(transport) as p:
            source = new_pool(1)
            incoming = p.grant(list(range(100, 164)))
            outgoing = p.sender(source).open(incoming.grant, list(range(64)))
            all_ready(outgoing, 64)
            stats = await commit(outgoing)
            request = await incoming.committed()
            assert (request.num_tokens, request.first_token) == (123, 5)
            assert (stats.num_blocks, stats.num_bytes) == (64, 64 * LAYOUT.block_bytes)
            assert p.filled(list(range(100, 164)), source, list(range(64)))
            assert p.untouched([99, 164])
            assert p.receiver.num_open_transfers == 0

    run(main(), loop_factory)


@pytest.mark.parametrize("seed", range(4))
def test_random_plans(transport, seed):
    """Blocks fragmented on both sides, some present already, chunks that end anywhere, small and large messages."""

    async def main():
        random_ = random.Random(seed)
        source = new_pool(seed + 1)
        async with pair(transport, max_message_bytes=random_.choice([1, 40_000, 2**20])) as p:
            sender = p.sender(source)
            for _ in range(3):
                number, present = random_.randrange(2, 200), random_.randrange(0, 2)
                source_ids, target_ids = fragmented(random_, number), fragmented(random_, number - present)
                p.fill(range(NUM_BLOCKS), 0)
                incoming = p.grant(target_ids, present)
                outgoing = sender.open(incoming.grant, source_ids)
                for end in [*sorted(random_.sample(range(number), min(3, number))), number]:
                    for group in range(LAYOUT.num_layer_groups):
                        outgoing.ready(group, end)
                        outgoing.ready(group, end // 2)  # never takes anything back
                    await asyncio.sleep(0)
                await commit(outgoing)
                await incoming.committed()
                assert p.filled(target_ids, source, source_ids[present:])
                assert p.untouched(set(range(NUM_BLOCKS)) - set(target_ids))

    run(main())


def test_once_connected_a_transfer_starts_no_threads(transport, monkeypatch):
    """At a thread limit, starting one would fail, with the work left in a queue that nobody awaits."""

    def refused(thread):
        raise RuntimeError("can't start new thread")

    async def main():
        async with pair(transport, max_message_bytes=2 * 2**20) as p:
            source = new_pool(1)
            sender = p.sender(source)
            for num_blocks in (1, 400):
                incoming = p.grant(list(range(100, 100 + num_blocks)))
                outgoing = sender.open(incoming.grant, list(range(num_blocks)))
                all_ready(outgoing, num_blocks)
                await commit(outgoing)
                monkeypatch.setattr(threading.Thread, "start", refused)
            assert p.filled(list(range(100, 500)), source, list(range(400)))
            monkeypatch.undo()  # asyncio's own executor is the process's

    run(main())


def test_nothing_missing_is_a_commit_alone(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([], present=3)
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1, 2, 3])
            assert (await commit(outgoing)).num_bytes == 0
            await incoming.committed()

    run(main())


def test_many_transfers_at_once_from_two_nodes(transport):
    async def main():
        sources = {"p0": new_pool(1), "p1": new_pool(2)}
        async with pair(transport) as p:
            senders = {name: p.sender(pool, name) for name, pool in sources.items()}

            async def one(index: int) -> None:
                name = f"p{index % 2}"
                ids = list(range(index * 16, index * 16 + 16))
                incoming = p.grant(ids, node_id=name)
                outgoing = senders[name].open(incoming.grant, ids[::-1])
                for end in range(1, 17):
                    all_ready(outgoing, end)
                    await asyncio.sleep(0)
                await commit(outgoing)
                await incoming.committed()
                assert p.filled(ids, sources[name], ids[::-1])

            await asyncio.gather(*(one(index) for index in range(32)))
            assert p.receiver.num_open_transfers == 0

    run(main())


def test_grant_after_everything_is_computed_or_long_before(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            early = p.grant([1, 2, 3])
            waiting = sender.open(early.grant, [4, 5, 6])
            late = p.grant([7, 8])
            outgoing = sender.open(late.grant, [9, 10])
            all_ready(outgoing, 2)
            await commit(outgoing)
            assert p.untouched([1, 2, 3])
            all_ready(waiting, 3)
            await commit(waiting)
            assert p.filled([1, 2, 3], source, [4, 5, 6])

    run(main())
