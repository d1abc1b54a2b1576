"""What every transport refuses, and what a failed transfer leaves behind. One suite for all transports."""

import asyncio
import gc
import threading

import kv_nodes
import pytest
from kv_nodes import HASH, LAYOUT, all_ready, arrivals, commit, new_pool, pair, run, ship

from baton.errors import LayoutMismatch, TransferError
from baton.kv.layout import KVLayout
from baton.v1.transfer_pb2 import CommitRequest
from kv_transfer.choose import make
from kv_transfer.faults import FAULTS
from kv_transfer.sender import KVSender
from kv_transfer.transport import Peer


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


def test_an_abandoned_commit_leaves_no_copy_running(monkeypatch):
    """If the call ends while messages are being copied into blocks, these stay in use until the copies end."""
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
            listener = await p.receiver.listeners.open(transport)
            try:
                for _ in range(2):
                    with pytest.raises(TransferError):
                        await stranger.connect(listener.host, listener.port, b"x" * 32, lambda: None)
            finally:
                await stranger.close()
            secret = await p.receiver.expect(Peer("p0", 1))
            inbox = p.receiver.inbox(transport)
            assert inbox.admit(secret) == Peer("p0", 1)
            assert inbox.admit(secret) is None

    run(main())


def test_an_abandoned_commit_is_no_error(transport):
    """The commit is pending when its request is cancelled."""

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
