"""Who may open a connection: a holder of a recent secret that is the latest incarnation of its node."""

import asyncio

import pytest
import torch

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from kv_transfer import receiver
from kv_transfer.incoming import TransferState
from kv_transfer.pool import KVPool
from kv_transfer.receiver import KVReceiver
from kv_transfer.transport import Peer
from tests.virtual_clock import run

LAYOUT = KVLayout(
    num_layers=1, layers_per_group=1, block_size=1, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
PEER = Peer("p0", 1)


def make():
    pool = KVPool(torch.zeros(LAYOUT.pool_bytes(2), dtype=torch.uint8), LAYOUT, 2)
    return KVReceiver(pool, "d0", 7, "127.0.0.1", "tcp")


def test_an_unused_secret_expires():
    async def main(clock):
        node = make()
        admit = node.inbox("tcp").admit
        secrets = [await node.expect(PEER) for _ in range(2)]
        await asyncio.sleep(29)
        assert admit(secrets[0]) == PEER
        await asyncio.sleep(2)
        assert admit(secrets[1]) is None
        await node.close()

    run(main)


def test_the_number_of_outstanding_secrets_is_bounded(monkeypatch):
    monkeypatch.setattr(receiver, "_MAX_SECRETS", 2)

    async def main(clock):
        node = make()
        for _ in range(2):
            await node.expect(PEER)
        with pytest.raises(TransferError, match="announced and not opened yet"):
            await node.expect(PEER)
        await asyncio.sleep(31)
        await node.expect(PEER)
        await node.close()

    run(main)


def test_a_later_incarnation_cuts_off_the_earlier_one_and_not_the_other_way():
    async def main(clock):
        node, cut = make(), []

        async def cut_off(peer):
            cut.append(peer.epoch)

        node.listeners.disconnect = cut_off
        transfers = [node.grant([0], 0, "p0", epoch, 60.0, b"") for epoch in (2, 3)]
        for epoch in (2, 1, 2, 3, 2):
            await node.expect(Peer("p0", epoch))
        assert cut == [2]
        assert [transfer.state for transfer in transfers] == [TransferState.FAILED, TransferState.OPEN]
        await node.close()
        with pytest.raises(TransferError, match="the decode node is stopping"):
            await transfers[1].committed()

    run(main)
