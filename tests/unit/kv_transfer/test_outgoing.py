"""One outgoing transfer: what it sends, and when."""

import asyncio
from types import SimpleNamespace

import torch

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.v1.transfer_pb2 import Grant
from kv_transfer.digest import Digester
from kv_transfer.outbox import Outbox
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import KVPool
from kv_transfer.transport import BlockConnection, Peer

LAYOUT = KVLayout(
    num_layers=2, layers_per_group=1, block_size=1, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
SIZE = LAYOUT.block_group_bytes
TAG = 1 << 20


def make(num_present, num_missing, max_message_bytes):
    grant = Grant(
        num_present_blocks=num_present,
        num_missing_blocks=num_missing,
        max_message_bytes=max_message_bytes,
        tag_base=TAG,
    )
    pool = KVPool(torch.zeros(LAYOUT.pool_bytes(4), dtype=torch.uint8), LAYOUT, 4)
    block_ids = list(range(num_present + num_missing))
    peer = SimpleNamespace(outbox=Outbox(), left=[])
    peer.leave = peer.left.append
    return OutgoingTransfer(grant, block_ids, pool, peer, Digester(), Peer("p0", 1))


def test_only_computed_blocks_that_are_missing_are_sent():
    async def main():
        transfer = make(1, 2, 1)  # a message for each block of each layer group
        transfer.ready(0, 1)
        assert transfer.take() is None
        transfer.ready(0, 2)
        assert transfer.take() == (0, TAG, SIZE)
        transfer.ready(0, 1)  # never takes anything back
        assert transfer.take() is None
        transfer.ready(1, 3)
        assert [transfer.take(), transfer.take()] == [(2, TAG + 2, SIZE), (3, TAG + 3, SIZE)]
        transfer.ready(0, 3)
        assert [transfer.take(), transfer.take()] == [(1, TAG + 1, SIZE), None]

    asyncio.run(main())


def test_layer_groups_of_one_message_wait_for_one_another():
    async def main():
        transfer = make(0, 2, 2**20)
        transfer.ready(0, 2)
        transfer.ready(1, 1)
        assert transfer.take() is None
        transfer.ready(1, 2)
        assert transfer.take() == (0, TAG, 4 * SIZE)

    asyncio.run(main())


def test_a_failed_transfer_sends_nothing_more():
    async def main():
        transfer = make(0, 2, 1)
        transfer.ready(0, 1)
        assert transfer.take() is not None
        transfer.sent(0, TransferError("the connection was lost"), None)
        transfer.ready(0, 2)
        assert transfer.take() is None
        assert transfer.error.message == "the connection was lost"

    asyncio.run(main())


def test_an_abort_waits_for_reads_and_sends_nothing_more():
    async def main():
        transfer = make(0, 2, 1)
        transfer.ready(0, 2)
        assert transfer.take() is not None
        digest = transfer._digests[0] = asyncio.get_running_loop().create_future()
        aborting = asyncio.create_task(transfer.abort())
        await asyncio.sleep(0)
        assert transfer.take() is None
        transfer.sent(0, None, None)
        await asyncio.sleep(0.01)
        assert not aborting.done()  # it has been sent, and is being digested
        assert transfer._peer.left == []
        digest.set_result(5)
        await aborting
        assert transfer._peer.left == [transfer]

    asyncio.run(main())


def test_blocks_that_are_sent_in_place_are_digested_where_they_lie():
    class Blocks(BlockConnection):
        sent: list[tuple[int, list[int]]] = []  # noqa: RUF012

        async def digest(self, places):
            return sum(places)

        async def send(self, tag, places):
            self.sent.append((tag, places))

        async def close(self):
            raise NotImplementedError

    async def main():
        transfer = make(1, 2, 2**20)
        for layer_group in (0, 1):
            transfer.ready(layer_group, 3)
        index, tag, _ = transfer.take()
        assert await transfer.send(index, tag, Blocks()) is None
        transfer.sent(index, None, None)
        assert Blocks.sent == [(TAG, [1, 2, 5, 6])]  # of 4 blocks a layer group
        assert await transfer._digests[index] == 14

    asyncio.run(main())
