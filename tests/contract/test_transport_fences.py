"""On every transport: a transfer that was cancelled, has ended or lost its lease writes nothing."""

import pytest
from kv_nodes import LAYOUT, NUM_BLOCKS, all_ready, arrivals, commit, new_pool, pair, run

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from tests.waiting import until


def test_cancel_in_the_middle_then_reuse(transport):
    """After `cancel` no byte of the cancelled transfer is written, however much of it the sender still has."""

    async def main():
        source = new_pool(1)
        async with pair(transport, max_message_bytes=200_000) as p:
            sender = p.sender(source)
            ids = list(range(NUM_BLOCKS))
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 3)
            await incoming.cancel()
            p.fill(ids, 9)
            with pytest.raises(TransferError, match=r"stale or over|cancelled"):
                await commit(outgoing)
            await outgoing.abort()
            assert p.untouched(ids, 9)
            with pytest.raises(TransferError):
                await incoming.committed()
            again = p.grant([5, 6])  # and the connection has survived
            outgoing = sender.open(again.grant, [1, 2])
            all_ready(outgoing, 2)
            await commit(outgoing)
            assert p.filled([5, 6], source, [1, 2])

    run(main())


def test_abort_in_the_middle_then_reuse_of_the_source(transport):
    """After `abort` the source may change: every message was sent as it was before, or not at all."""

    async def main():
        source, original = new_pool(1), new_pool(1)
        async with pair(transport, max_message_bytes=200_000) as p:
            sender = p.sender(source)
            ids = list(range(NUM_BLOCKS))
            p.fill(ids, 9)
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 3)
            await outgoing.abort()
            await outgoing.abort()
            for group in range(LAYOUT.num_layer_groups):
                source.view(group, 0, NUM_BLOCKS)[:] = bytes(NUM_BLOCKS * LAYOUT.block_group_bytes)
            await incoming.cancel()
            whole = [p.target.view(0, block, 1) == original.view(0, block, 1) for block in ids]
            assert any(whole)
            assert p.untouched([block for block in ids if not whole[block]], 9, groups=1)

    run(main())


def test_lease_ends(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([1, 2], lease_s=0.05)
            with pytest.raises(TransferError, match="lease"):
                await incoming.committed()
            sender = p.sender(new_pool(1))
            outgoing = sender.open(incoming.grant, [1, 2])
            all_ready(outgoing, 2)
            with pytest.raises(TransferError, match="lease"):
                await commit(outgoing)
            await incoming.cancel()
            assert p.untouched([1, 2])
            outgoing = sender.open(incoming.grant, [1, 2])
            all_ready(outgoing, 2)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(outgoing)
            assert p.untouched([1, 2])

    run(main())


def test_renewed_lease_lasts(transport):
    async def main():
        async with pair(transport) as p:
            incoming, other = p.grant([1], lease_s=0.2), p.grant([2], lease_s=0.2)
            incoming.renew(10)
            incoming.renew(0.01)  # never shortens
            with pytest.raises(TransferError, match="lease"):
                await other.committed()  # which lasted as long
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            await commit(outgoing)

    run(main())


def test_messages_that_arrive_renew_the_lease(transport):
    async def main():
        async with pair(transport, max_message_bytes=1) as p:
            incoming = p.grant([1, 2])
            ends_s = incoming._lease_end_s
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1, 2])
            all_ready(outgoing, 1)
            await until(lambda: incoming._digests)
            assert incoming._lease_end_s > ends_s

    run(main())


def test_stale_grants_are_refused(transport):
    """Grants of an earlier incarnation of the decode node, for another node, unknown ones, and used ones."""

    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            incoming = p.grant([1])
            old_life = transfer_pb2.Grant.FromString(incoming.grant.SerializeToString())
            old_life.decode_epoch = 6
            other = sender.open(old_life, [1])
            all_ready(other, 1)
            with pytest.raises(TransferError, match="restarted"):
                await commit(other)
            thief = p.sender(source, "p9").open(incoming.grant, [1])
            all_ready(thief, 1)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(thief)
            if transport != "ucx":  # over UCX the tag itself, which only p0 was told, is what lets a message in
                assert p.untouched([1])
            unknown = transfer_pb2.Grant.FromString(incoming.grant.SerializeToString())
            unknown.grant_id += 100
            unknown.tag_base = 12345 << 20
            dropped = sender.open(unknown, [1])
            all_ready(dropped, 1)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(dropped)
            await incoming.cancel()
            fresh = p.grant([2])
            outgoing = sender.open(fresh.grant, [3])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert p.filled([2], source, [3])
            with pytest.raises(TransferError, match="stale or over"):
                await commit(outgoing)
            assert p.untouched([1]) or transport == "ucx"

    run(main())
