"""One suite for every transport: whatever carries the messages, blocks arrive whole, or not at all."""

import asyncio
import gc
import random
import threading

import kv_nodes
import pytest
import uvloop
from kv_nodes import (
    HASH,
    LAYOUT,
    NUM_BLOCKS,
    all_ready,
    arrivals,
    commit,
    fragmented,
    new_pool,
    pair,
    run,
    ship,
)

from baton.errors import LayoutMismatch, TransferError
from baton.kv.layout import KVLayout
from baton.v1.transfer_pb2 import CommitRequest
from kv_transfer.choose import make
from kv_transfer.faults import FAULTS
from kv_transfer.sender import KVSender
from kv_transfer.transport import Peer


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
    """Fragmented on both sides, a part present already, chunks that end anywhere, small and large messages."""

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
    """At a limit of its user or container it would get none, with the work in a queue that nobody awaits."""

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


def test_corrupted_message_is_never_accepted(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            incoming = p.grant([1, 2, 3])
            FAULTS.arm("corrupt_message")
            outgoing = sender.open(incoming.grant, [1, 2, 3])
            all_ready(outgoing, 3)
            with pytest.raises(TransferError, match="not those that were sent"):
                await commit(outgoing)
            with pytest.raises(TransferError, match="not those that were sent"):
                await incoming.committed()
            await incoming.cancel()
            incoming = p.grant([1, 2, 3])
            outgoing = sender.open(incoming.grant, [1, 2, 3])
            all_ready(outgoing, 3)
            await commit(outgoing)
            assert p.filled([1, 2, 3], source, [1, 2, 3])

    run(main())


def test_blocks_that_did_not_reach_the_device_are_never_accepted(monkeypatch):
    def fail(*args):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(kv_nodes, "Pool", kv_nodes.Staged)

    async def main():
        async with pair("loopback") as p:
            monkeypatch.setattr(p.target.blocks, "_copy_in", fail)
            incoming = p.grant([1, 2])
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1, 2])
            all_ready(outgoing, 2)
            with pytest.raises(TransferError, match="device-side assert"):
                await commit(outgoing)
            with pytest.raises(TransferError):
                await incoming.committed()
            await outgoing.abort()
            await incoming.cancel()
            assert p.receiver.num_open_transfers == 0

    run(main())


def test_a_commit_that_nobody_waits_for_any_more_leaves_no_copy_behind(monkeypatch):
    """Its call ends while messages are on their way into the blocks: these are in use until the copies are over."""
    monkeypatch.setattr(kv_nodes, "Pool", kv_nodes.Staged)

    async def main():
        async with pair("tcp", max_message_bytes=200_000) as p:
            ids, go_on = list(range(64)), threading.Event()
            copy = p.target.blocks._copy_in
            monkeypatch.setattr(p.target.blocks, "_copy_in", lambda *args: go_on.wait(10) and copy(*args))
            incoming = p.grant(ids)
            outgoing = p.sender(new_pool(1)).open(incoming.grant, ids)
            all_ready(outgoing, 64)
            number = len(incoming._plan)
            request = CommitRequest(digests=[0] * number, last_block_hash=HASH)
            accepting = asyncio.create_task(incoming.accept(request))
            await arrivals(incoming, number)
            while incoming._writing:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            accepting.cancel()  # as gRPC does
            await asyncio.wait([accepting])
            cancelling = asyncio.create_task(incoming.cancel())
            await asyncio.sleep(0.05)
            assert not cancelling.done()
            go_on.set()
            await cancelling
            p.fill(ids, 9)
            await asyncio.sleep(0.05)
            assert p.untouched(ids, 9)
            assert p.target._landing_bytes == 0
            await outgoing.abort()

    run(main())


def test_disagreement_about_tokens_is_refused(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([1])
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            with pytest.raises(TransferError, match="disagree"):
                await outgoing.commit(1, b"other", 1, 5.0)

    run(main())


def test_layout_mismatch_names_both_sides(transport):
    async def main():
        async with pair(transport) as p:
            other = LAYOUT.__class__.from_proto(LAYOUT.to_proto())
            other = KVLayout(**{**{f: getattr(other, f) for f in other.__struct_fields__}, "dtype": "float16"})
            incoming = p.grant([1])
            outgoing = p.sender(new_pool(1, other)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            with pytest.raises(LayoutMismatch, match="dtype: bfloat16 on decode node d0, float16 on prefill node p0"):
                await commit(outgoing)

    run(main())


def test_transport_mismatch_names_both_sides():
    async def main():
        async with pair("tcp") as p:
            sender = KVSender(new_pool(1), "p0", 1, "loopback", "")
            p.senders.append(sender)
            with pytest.raises(LayoutMismatch, match="tcp on decode node d0, loopback on prefill node p0"):
                await commit(sender.open(p.grant([1]).grant, [1]))

    run(main())


def test_grant_that_does_not_fit_the_request(transport):
    async def main():
        async with pair(transport) as p:
            with pytest.raises(TransferError, match="does not fit"):
                p.sender(new_pool(1)).open(p.grant([1, 2], present=1).grant, [1, 2])

    run(main())


def test_no_connection_without_a_secret(transport):
    async def main():
        async with pair(transport) as p:
            stranger = make(transport, "127.0.0.1")
            door = await p.receiver.doors.open(transport)
            try:
                for _ in range(2):
                    with pytest.raises(TransferError):
                        await stranger.connect(door.host, door.port, b"x" * 32, lambda: None)
            finally:
                await stranger.close()
            secret = await p.receiver.expect(Peer("p0", 1))
            inbox = p.receiver.inbox(transport)
            assert inbox.admit(secret) == Peer("p0", 1)
            assert inbox.admit(secret) is None

    run(main())


def test_an_end_that_nobody_waits_for_is_no_error(transport):
    """Of a commit that is under way when its request is cancelled."""

    async def main():
        errors, refused = [], asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["message"]))

        async def refuse(request):
            await refused.wait()
            raise TransferError("cancelled meanwhile")

        async with pair(transport) as p:
            sender = p.sender(new_pool(1))
            await ship(p, sender, [2], [2])
            incoming = p.grant([1])
            incoming.accept = refuse
            outgoing = sender.open(incoming.grant, [1])
            all_ready(outgoing, 1)
            asked = asyncio.create_task(commit(outgoing))
            while not (commits := outgoing._peer._commits):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
            refused.set()
            await asyncio.wait(list(commits))
            await outgoing.abort()
            await incoming.cancel()
        del asked, commits
        gc.collect()
        await asyncio.sleep(0)
        assert errors == []

    run(main())
