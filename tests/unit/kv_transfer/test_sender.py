"""One peer for each incarnation of a decode node, and none that outlives it."""

import asyncio

import pytest
import torch

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.v1 import transfer_pb2
from kv_transfer.pool import KVPool
from kv_transfer.sender import KVSender

LAYOUT = KVLayout(
    num_layers=1, layers_per_group=1, block_size=1, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
NOBODY = "127.0.0.1:1"


def grant(node_id: str = "d0", epoch: int = 7, address: str = NOBODY) -> transfer_pb2.Grant:
    return transfer_pb2.Grant(
        decode_node_id=node_id, decode_epoch=epoch, decode_address=address, num_missing_blocks=1, max_message_bytes=1
    )


def run(main):
    async def with_sender():
        pool = KVPool(torch.zeros(LAYOUT.pool_bytes(2), dtype=torch.uint8), LAYOUT, 2)
        sender = KVSender(pool, "p0", 1, "tcp", "")
        try:
            await main(sender)
        finally:
            await sender.close()

    asyncio.run(with_sender())


@pytest.mark.parametrize("other", [{"epoch": 8}, {"address": "127.0.0.1:2"}])
def test_another_incarnation_ends_the_peer_though_its_connection_may_stand(other):
    async def main(sender):
        first, second = sender.open(grant(), [1]), sender.open(grant(), [1])
        assert first._peer is second._peer
        new = sender.open(grant(**other), [1])
        assert new._peer is not first._peer
        for old in (first, second):
            assert "restarted" in str(old.error)
        assert new.error is None
        assert sender._peers == {"d0": new._peer}

    run(main)


def test_the_end_of_one_peer_does_not_end_another():
    async def main(sender):
        first, other = sender.open(grant(), [1]), sender.open(grant("d1"), [1])
        first._peer.end(TransferError("lost"))
        assert (str(first.error), other.error) == ("lost", None)
        assert sender._peers == {"d1": other._peer}

    run(main)


def test_close_ends_all_transfers_and_waits_for_each():
    async def main(sender):
        transfers = [sender.open(grant(), [1]), sender.open(grant("d1"), [1])]
        await sender.close()
        assert ["stopping" in str(transfer.error) for transfer in transfers] == [True, True]
        assert all(transfer._peer._connecting.done() for transfer in transfers)
        assert (sender._peers, sender._closing) == ({}, set())

    run(main)
