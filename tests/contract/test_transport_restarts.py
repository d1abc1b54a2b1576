"""On every transport: nodes that restart as another incarnation, and nodes that were unreachable."""

import asyncio
import contextlib

import pytest
from kv_nodes import Pair, all_ready, commit, new_pool, pair, run

import kv_transfer.sender
from baton.errors import TransferError
from baton.net import rpc
from baton.v1 import transfer_pb2
from kv_transfer.service import add_transfer_service
from tests.waiting import until


def test_restarted_prefill_node_takes_the_place_of_the_old(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            old = p.sender(source, epoch=1)
            first = p.grant([1], epoch=1)
            outgoing = old.open(first.grant, [1])
            all_ready(outgoing, 1)
            await commit(outgoing)
            left_behind = p.grant([2], epoch=1)
            new = p.sender(source, epoch=2)
            fresh = p.grant([3], epoch=2)
            outgoing = new.open(fresh.grant, [4])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert p.filled([3], source, [4])
            with pytest.raises(TransferError, match="restarted"):
                await left_behind.committed()
            late = old.open(left_behind.grant, [2])
            all_ready(late, 1)
            with pytest.raises(TransferError):
                await commit(late)
            await left_behind.cancel()
            assert p.untouched([2])

    run(main())


def test_a_prefill_node_that_was_replaced_and_comes_back_disturbs_nobody(transport):
    """The old process connects, with an old grant; its successor's transfer continues over the same connection."""

    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            left_behind = p.grant([1], epoch=1)
            new = p.sender(source, epoch=2)
            outgoing = new.open(p.grant([2], epoch=2).grant, [2])
            all_ready(outgoing, 1)
            await commit(outgoing)
            under_way = p.grant([3, 4], epoch=2)
            outgoing = new.open(under_way.grant, [3, 4])
            peer = outgoing._peer
            late = p.sender(source, epoch=1).open(left_behind.grant, [1])
            await asyncio.gather(late._peer.connected(), return_exceptions=True)
            all_ready(outgoing, 2)
            await commit(outgoing)
            assert peer.error is None
            assert p.filled([3, 4], source, [3, 4])
            await late.abort()
            await left_behind.cancel()

    run(main())


def test_a_prefill_node_that_connects_again_loses_its_earlier_connection(transport):
    """Of which it may have noticed the end first."""

    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            first, second = p.sender(source), p.sender(source)
            for sender, block in ((first, 1), (second, 2)):
                outgoing = sender.open(p.grant([block]).grant, [block])
                all_ready(outgoing, 1)
                await commit(outgoing)
            async with asyncio.timeout(10):
                await until(lambda: not first._peers)
            assert second._peers

    run(main())


def test_restarted_decode_node_at_the_same_address(transport):
    async def main():
        source = new_pool(1)
        first = Pair(transport)
        await first.start()
        sender = first.sender(source)
        outgoing = sender.open(first.grant([1]).grant, [1])
        all_ready(outgoing, 1)
        await commit(outgoing)
        stuck = sender.open(first.grant([2]).grant, [2])
        first.senders.clear()
        await first.stop()
        second = Pair(transport)
        second.receiver.epoch = 8
        second.server = rpc.server()
        add_transfer_service(second.receiver, second.server)
        second.receiver.address = first.receiver.address
        second.server.add_insecure_port(second.receiver.address)
        await second.server.start()
        await second.receiver.start()
        second.senders.append(sender)
        try:
            outgoing = sender.open(second.grant([1]).grant, [3])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert second.filled([1], source, [3])
            all_ready(stuck, 1)
            with pytest.raises(TransferError):
                await commit(stuck)
            await stuck.abort()
        finally:
            await second.stop()

    run(main())


def test_an_unreachable_node_is_not_waited_for_again_at_once(monkeypatch):
    """Otherwise every request placed before the failure was known would wait for the whole timeout."""
    monkeypatch.setattr(kv_transfer.sender, "_UNREACHABLE_S", 0.3)

    async def main():
        async with pair("tcp") as p:
            sender, grant = p.sender(new_pool(1)), transfer_pb2.Grant()
            grant.CopyFrom(p.grant([1]).grant)
            grant.decode_address = "127.0.0.1:1"
            first = sender.open(grant, [1])
            all_ready(first, 1)
            with pytest.raises(TransferError):
                await commit(first)
            with pytest.raises(TransferError, match="connect"):
                sender.open(grant, [1])
            incoming = p.grant([2])  # the same node at another address: it has nothing to do with that
            other = sender.open(incoming.grant, [2])
            all_ready(other, 1)
            await commit(other)
            async with asyncio.timeout(5):
                while True:
                    with contextlib.suppress(TransferError):
                        await sender.open(grant, [1]).abort()
                        break
                    await asyncio.sleep(0.02)

    run(main())
