"""One incoming transfer: which messages it admits, for how long, and when it is accepted."""

import asyncio

import pytest
import torch

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.v1.transfer_pb2 import CommitRequest
from kv_transfer.digest import digest
from kv_transfer.incoming import TransferState
from kv_transfer.pool import KVPool
from kv_transfer.receiver import KVReceiver
from kv_transfer.staged_pool import StagedPool
from kv_transfer.transport import Peer
from tests.virtual_clock import run

LAYOUT = KVLayout(
    num_layers=1, layers_per_group=1, block_size=1, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
SIZE = LAYOUT.block_group_bytes
PEER, HASH = Peer("p0", 1), b"h" * 16
LEASE_S = 5.0
RIGHT = digest([memoryview(bytes(SIZE))])


def buffer():
    return torch.zeros(LAYOUT.pool_bytes(4), dtype=torch.uint8)


class Case:
    """A transfer of two blocks, one message each."""

    def __init__(self, pool=None):
        pool = pool or KVPool(buffer(), LAYOUT, 4)
        self.node = KVReceiver(pool, "d0", 7, "127.0.0.1", "tcp", max_message_bytes=1)
        self.inbox = self.node.inbox("tcp")
        self.transfer = self.node.grant([2, 1], 0, *PEER, LEASE_S, HASH)
        self.first, self.second = self.tags = [self.transfer.grant.tag_base + index for index in range(2)]

    def claim(self, tag, num_bytes=SIZE, peer=PEER):
        return self.inbox.claim(tag, num_bytes, peer)

    def arrive(self, *tags):
        for tag in tags:
            assert self.claim(tag)
            self.inbox.arrived(tag)

    async def accept(self, digests=(RIGHT, RIGHT), last_block_hash=HASH):
        await self.transfer.accept(CommitRequest(digests=digests, last_block_hash=last_block_hash))


def test_a_message_is_admitted_once_and_only_as_planned():
    async def main(clock):
        case = Case()
        assert case.claim(case.first, SIZE + 1) is None
        assert case.claim(case.second + 1) is None
        assert case.claim(case.first ^ 1 << 40) is None  # of no transfer
        assert case.claim(case.first, peer=Peer("p0", 2)) is None
        slot = case.claim(case.first)
        assert (slot.peer, [view.nbytes for view in slot.views]) == (PEER, [SIZE])
        assert case.claim(case.first) is None  # it is being written
        case.inbox.arrived(case.first)
        assert case.claim(case.first) is None  # it has been digested
        assert case.claim(case.second, peer=None)  # UCX: only the tag identifies the sender
        case.inbox.arrived(case.second)
        assert case.transfer.state is TransferState.OPEN
        await case.node.close()

    run(main)


def test_nothing_is_admitted_or_renewed_after_the_lease():
    async def main(clock):
        case = Case()
        case.transfer.renew(1.0)  # never shortens
        await asyncio.sleep(LEASE_S - 0.1)
        assert case.claim(case.first, SIZE + 1) is None  # which looks at the lease, too
        assert case.transfer.state is TransferState.OPEN
        clock.now += 0.1  # before the timer
        assert case.claim(case.first) is None
        case.transfer.renew(100.0)
        assert case.claim(case.first) is None
        unasked = case.node.grant([0], 0, *PEER, LEASE_S, HASH)
        for transfer in (case.transfer, unasked):
            with pytest.raises(TransferError, match="lease"):
                await transfer.committed()
        assert clock.now == pytest.approx(2 * LEASE_S)
        await case.node.close()

    run(main)


def test_each_message_that_arrives_renews_the_lease():
    async def main(clock):
        case = Case()
        for tag in case.tags:
            await asyncio.sleep(LEASE_S - 1)
            case.arrive(tag)
        await asyncio.sleep(LEASE_S - 1)
        await case.accept()
        assert (await case.transfer.committed()).last_block_hash == HASH
        assert (case.node.num_open_transfers, case.node._transfers) == (0, {})
        case.transfer.fail("cancelled", "too late")
        assert case.transfer.state is TransferState.ACCEPTED
        await asyncio.sleep(10 * LEASE_S)
        await case.transfer.committed()
        await case.node.close()

    run(main)


def test_a_lease_that_ends_while_digests_are_compared_fails_the_transfer():
    async def main(clock):
        case, pending = Case(), asyncio.get_running_loop().create_future()
        case.node._digester.start = lambda views: pending
        case.arrive(*case.tags)
        accepting = asyncio.create_task(case.accept())
        await asyncio.sleep(1)
        pending.set_result(RIGHT)
        clock.now += LEASE_S  # this process was away meanwhile: no timer has told of it
        with pytest.raises(TransferError, match="lease"):
            await accepting
        await case.node.close()

    run(main)


@pytest.mark.parametrize(
    ("commit", "why"),
    [
        ({"digests": [RIGHT, RIGHT + 1]}, "not those that were sent"),
        ({"digests": [RIGHT]}, "1 digests for 2 messages"),
        ({"digests": [RIGHT] * 3}, "3 digests for 2 messages"),
        ({"last_block_hash": b"other"}, "disagree"),
    ],
)
def test_a_commit_that_does_not_match_what_arrived_is_refused(commit, why):
    async def main(clock):
        case = Case()
        case.arrive(*case.tags)
        for waiting in (case.accept(**commit), case.transfer.committed(), case.accept()):
            with pytest.raises(TransferError, match=why):
                await waiting
        await case.node.close()

    run(main)


def test_a_commit_waits_while_messages_come_and_two_seconds_for_the_next_one():
    async def main(clock):
        for tags, outcome in ((2, "accepted"), (1, "1 of 2 messages did not arrive")):
            case = Case()
            accepting = asyncio.create_task(case.accept())
            for tag in case.tags[:tags]:
                await asyncio.sleep(1.9)
                assert not accepting.done()
                case.arrive(tag)
            began_s = clock.now
            if outcome == "accepted":
                await accepting
            else:
                with pytest.raises(TransferError, match=outcome):
                    await accepting
                assert clock.now - began_s == pytest.approx(2.0)
            await case.node.close()

    run(main)


@pytest.mark.parametrize("word", ["arrived", "lost"])
def test_memory_that_a_cancelled_transfer_was_writing_to_is_freed(word):
    async def main(clock):
        pool = StagedPool(buffer(), LAYOUT, 4)
        case = Case(pool)
        assert case.claim(case.first)
        cancelling = asyncio.create_task(case.transfer.cancel())
        await asyncio.sleep(0.1)
        assert not cancelling.done()
        assert case.claim(case.second) is None
        getattr(case.inbox, word)(case.first)
        await cancelling
        assert (pool._landing_bytes, case.node.num_open_transfers) == (0, 0)
        assert clock.now == pytest.approx(0.1)
        await case.node.close()
        pool.close()

    run(main)


def test_a_transfer_fails_without_staging_memory():
    async def main(clock):
        pool = StagedPool(buffer(), LAYOUT, 4, max_landing_bytes=SIZE)
        case = Case(pool)
        assert case.claim(case.first)
        assert case.claim(case.second) is None
        with pytest.raises(TransferError, match="too many messages"):
            await case.transfer.committed()
        case.inbox.arrived(case.first)
        assert pool._landing_bytes == 0
        await case.node.close()
        pool.close()

    run(main)


def test_a_message_that_is_lost_fails_its_transfer_at_once():
    async def main(clock):
        case = Case()
        accepting = asyncio.create_task(case.accept())
        assert case.claim(case.first)
        await asyncio.sleep(0.1)
        case.inbox.lost(case.first)
        with pytest.raises(TransferError, match="connection"):
            await accepting
        assert clock.now == pytest.approx(0.1)
        await case.node.close()

    run(main)


def test_a_closing_connection_fails_the_transfers_that_used_it():
    async def main(clock):
        case = Case()
        fresh = case.node.grant([0], 0, *PEER, LEASE_S, HASH)
        others = case.node.grant([3], 0, "p0", 2, LEASE_S, HASH)
        case.arrive(case.first)
        assert case.claim(others.grant.tag_base, SIZE, others.peer)
        accepting = asyncio.create_task(case.accept())
        await asyncio.sleep(0)
        case.node.inbox("shm").disconnected(PEER)
        assert case.transfer.state is TransferState.OPEN
        case.inbox.disconnected(PEER)
        states = [transfer.state for transfer in (case.transfer, fresh, others)]
        assert states == [TransferState.FAILED, TransferState.OPEN, TransferState.OPEN]
        assert case.node.find(fresh.grant.grant_id, PEER) is fresh
        assert case.node.find(fresh.grant.grant_id, Peer("p0", 2)) is None
        with pytest.raises(TransferError, match="connection"):
            await accepting
        assert clock.now == 0
        case.inbox.lost(others.grant.tag_base)
        await case.node.close()
        assert fresh.state is TransferState.FAILED

    run(main)
