"""To get blocks back, a node waits while messages end; only if none does, it closes the shared connection."""

import asyncio

import pytest
import torch

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.v1 import transfer_pb2
from kv_transfer.digest import Digester
from kv_transfer.outbox import Outbox
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import KVPool
from kv_transfer.receiver import KVReceiver
from kv_transfer.transport import ByteConnection, Peer
from tests.virtual_clock import run

LAYOUT = KVLayout(
    num_layers=4, layers_per_group=1, block_size=1, num_kv_heads=1, head_dim=4, dtype="float32", model_fingerprint="ab"
)
POOL = KVPool(torch.zeros(LAYOUT.pool_bytes(2), dtype=torch.uint8), LAYOUT, 2)
NUM_MESSAGES = LAYOUT.num_layer_groups  # of a transfer of one block
PAUSE_S, PATIENCE_S = 0.7, 1.0


def test_a_cancel_waits_while_messages_arrive():
    async def main(clock):
        receiver, cut = KVReceiver(POOL, "d0", 7, "127.0.0.1", "tcp", max_message_bytes=1), []
        transfer, inbox, tags = begun(receiver, cut)
        cancelled = asyncio.create_task(transfer.cancel())
        for tag in tags:
            await asyncio.sleep(PAUSE_S)
            assert not cancelled.done()
            inbox.arrived(tag)
        await cancelled
        assert not cut
        await receiver.close()

    run(main)


def test_a_cancel_does_not_wait_for_messages_that_never_come():
    async def main(clock):
        receiver, cut = KVReceiver(POOL, "d0", 7, "127.0.0.1", "tcp", max_message_bytes=1), []
        transfer, inbox, tags = begun(receiver, cut)
        inbox.arrived(tags.pop())
        await transfer.cancel()
        assert cut == [pytest.approx(PATIENCE_S)]
        assert clock.now == pytest.approx(PATIENCE_S + PAUSE_S)  # some were still being written then
        await receiver.close()

    run(main)


def begun(receiver, cut):
    """Return a transfer, the inbox of its messages, and their tags. All messages are being written."""
    inbox, tags = receiver.inbox("tcp"), []

    async def cut_off(peer):
        loop = asyncio.get_running_loop()
        cut.append(loop.time())
        for tag in tags:
            loop.call_later(PAUSE_S, inbox.lost, tag)

    receiver.listeners.disconnect = cut_off
    transfer = receiver.grant([1], 0, "p0", 1, 60.0, b"")
    tags += range(transfer.grant.tag_base, transfer.grant.tag_base + NUM_MESSAGES)
    for tag in tags:
        assert inbox.claim(tag, LAYOUT.block_group_bytes, Peer("p0", 1))
    return transfer, inbox, tags


class Wire(ByteConnection):
    """A connection that holds every message until the test releases it."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def send(self, tag, views):
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    async def close(self):
        for message in self.waiting:
            if not message.done():
                message.set_exception(TransferError("closed"))


class Node:
    """A peer that is already connected."""

    transport = "wire"

    def __init__(self) -> None:
        self.outbox, self.wire = Outbox(), Wire()
        self.outbox.start(self.wire)
        self.cut: list[float] = []

    async def close_connection(self):
        self.cut.append(asyncio.get_running_loop().time())
        await self.wire.close()

    def leave(self, transfer):
        assert not transfer._loans


@pytest.mark.parametrize("moves", [True, False])
def test_an_abort_waits_while_messages_leave(moves):
    async def main(clock):
        node, digester = Node(), Digester()
        grant = transfer_pb2.Grant(num_missing_blocks=1, max_message_bytes=1)
        transfer = OutgoingTransfer(grant, [1], POOL, node, digester, Peer("p0", 1))
        for group in range(LAYOUT.num_layer_groups):
            transfer.ready(group, 1)
        await asyncio.sleep(0.1)
        assert len(node.wire.waiting) == NUM_MESSAGES
        aborted = asyncio.create_task(transfer.abort())
        for message in node.wire.waiting if moves else []:
            await asyncio.sleep(PAUSE_S)
            assert not aborted.done()
            message.set_result(None)
        await aborted
        assert node.cut == ([] if moves else [pytest.approx(0.1 + PATIENCE_S)])
        digester.close()

    run(main)
