"""Which transport a pair of nodes uses, and what is logged if it is not the best one."""

import asyncio
from contextlib import suppress

import kv_nodes
import pytest
from kv_nodes import Pair, all_ready, arrivals, commit, new_pool, pair, run

from baton.errors import LayoutMismatch, TransferError
from kv_transfer import choose, connector, peer, sender
from kv_transfer.metrics import BYTES, FALLBACKS
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.sender import KVSender
from kv_transfer.shm import process_memory
from kv_transfer.shm.host_memory import HostMemory
from kv_transfer.shm.transport import ShmListener, ShmTransport
from kv_transfer.ucx.transport import UcxTransport, why_unavailable
from tests.waiting import until


def count(metric, transport: str) -> float:
    return metric.labels(transport)._value.get()


async def ship(p: Pair, wanted: str, without_shm: bool) -> str:
    """Transfer one block; return the name of the transport that carried it."""
    source = new_pool(1)
    if wanted == "ucx" or without_shm:
        with suppress(TransferError):  # there is none
            await p.receiver.listeners.open("ucx")  # whose start, on a busy machine, takes longer than a connect may
    p.senders.append(KVSender(source, "p0", 1, wanted, ""))
    outgoing = p.senders[-1].open(p.grant([1]).grant, [2])
    all_ready(outgoing, 1)
    stats = await commit(outgoing)
    assert p.filled([1], source, [2])
    return stats.transport


def ship_between(decode: str, prefill: str, *, without_shm: bool = False) -> str:
    found = []

    async def main():
        p = Pair(decode)
        await p.start()
        try:
            found.append(await ship(p, prefill, without_shm))
        finally:
            await p.stop()

    run(main())
    return found[0]


@pytest.fixture
def unreadable(monkeypatch):
    """Make process memory unreadable, as in a container that may not ptrace."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process_memory, "read", refuse)


@pytest.mark.parametrize(
    ("decode", "prefill", "used"),
    [
        ("auto", "auto", "shm"),
        ("auto", "tcp", "tcp"),
        ("tcp", "auto", "tcp"),
        ("auto", "ucx", "ucx"),
        ("shm", "auto", "shm"),
    ],
)
def test_the_best_that_both_have(decode, prefill, used):
    if used == "ucx":
        pytest.importorskip("ucxx", reason="UCX comes in a wheel for Linux on x86_64 only")
    before = count(BYTES, used)
    assert ship_between(decode, prefill) == used
    assert count(BYTES, used) > before


def test_a_transport_that_fails_is_logged_and_the_next_one_used(unreadable, caplog):
    before = count(FALLBACKS, "shm")
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "do not travel over shm" in caplog.text
    assert "may not read the prefill node's memory (Operation not permitted)" in caplog.text
    assert count(FALLBACKS, "shm") == before + 1


def test_a_named_transport_that_fails_is_an_error(unreadable):
    with pytest.raises(TransferError, match="may not read the prefill node's memory"):
        ship_between("auto", "shm")


def test_another_host_is_no_failure_but_a_fact(monkeypatch, caplog):
    monkeypatch.setattr(sender, "host_id", lambda: "another kernel")
    before = count(FALLBACKS, "shm")
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "shm" not in caplog.text
    assert count(FALLBACKS, "shm") == before
    with pytest.raises(LayoutMismatch, match="on decode node d0, shm on prefill node p0: they are on different hosts"):
        ship_between("auto", "shm")


def test_a_name_that_nobody_here_listens_on(monkeypatch, caplog):
    """The two nodes share a kernel, but not a network namespace."""

    async def elsewhere(self, host, inbox):
        listener = ShmListener(inbox, HostMemory)
        listener.host = "baton-kv-elsewhere"
        return listener

    monkeypatch.setattr("kv_transfer.shm.transport.ShmTransport.listen", elsewhere)
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")
    assert "another network namespace" in caplog.text


def broken(monkeypatch, better) -> list[str]:
    """Give nodes a transport besides tcp that can be connected to only once something is in the list."""
    connect, repairs = better.connect, []

    async def at_last(self, *args):
        if not repairs:
            raise TransferError("not yet")
        return await connect(self, *args)

    monkeypatch.setattr(better, "connect", at_last)
    monkeypatch.setattr(choose, "AUTO", (better.name, "tcp"))
    return repairs


async def fallen_back(p: Pair, better, repairs: list[str]) -> tuple[peer.DecodePeer, OutgoingTransfer]:
    """Return a peer that has switched to the better transport, and a transfer that had begun over tcp."""
    await p.receiver.listeners.open(better.name)
    p.senders.append(KVSender(new_pool(1), "p0", 1, "auto", ""))
    incoming = p.grant([7])
    under_way = p.senders[0].open(incoming.grant, [8])
    under_way.ready(0, 1)
    await arrivals(incoming, 1)
    (node,) = p.senders[0]._peers.values()
    assert node.transport == "tcp"
    repairs.append("now")
    await until(lambda: node.transport == better.name)
    return node, under_way


@pytest.mark.parametrize("better", [ShmTransport, UcxTransport])
def test_a_failed_transport_is_retried_while_transfers_continue(monkeypatch, better):
    if better is UcxTransport and (reason := why_unavailable()):
        pytest.skip(reason)
    repairs = broken(monkeypatch, better)
    monkeypatch.setattr(peer, "RETRY_S", 0.05)

    async def main():
        source = new_pool(1)
        async with pair("auto", max_message_bytes=1) as p:  # a message for each layer group
            node, under_way = await fallen_back(p, better, repairs)
            all_ready(under_way, 1)
            other = p.senders[0].open(p.grant([1]).grant, [2])
            all_ready(other, 1)
            assert (await commit(other)).transport == better.name
            await commit(under_way)
            assert p.filled([1, 7], source, [2, 8])
            assert list(p.senders[0]._peers.values()) == [node]

    run(main())


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_the_old_connection_is_closed_when_all_its_transfers_have_ended(monkeypatch, end):
    """Messages in flight over the new connection are not affected."""
    repairs = broken(monkeypatch, ShmTransport)
    monkeypatch.setattr(peer, "RETRY_S", 0.05)

    async def main():
        async with pair("auto", max_message_bytes=1) as p:
            node, old = await fallen_back(p, ShmTransport, repairs)
            tcp = await p.receiver.listeners.open("tcp")
            incoming = p.grant([1])
            new = p.senders[0].open(incoming.grant, [2])
            new.ready(0, 1)
            await arrivals(incoming, 1)
            assert len(node._routes) == 2
            assert tcp._connections
            all_ready(old, 1)
            await (commit(old) if end == "commit" else old.abort())
            await until(lambda: not tcp._connections)
            all_ready(new, 1)
            assert (await commit(new)).transport == "shm"
            assert len(node._routes) == 1
            assert not node.error

    run(main())


def test_a_transport_that_is_slow_to_start_is_skipped_if_there_is_another(monkeypatch):
    async def never(self):
        await asyncio.Event().wait()

    monkeypatch.setattr(ShmTransport, "ready", never)
    monkeypatch.setattr(connector, "PATIENCE_S", 0.01)
    assert ship_between("auto", "auto", without_shm=True) in ("ucx", "tcp")


def test_it_is_tried_again_after_twice_the_pause_up_to_ten_minutes(monkeypatch):
    broken(monkeypatch, ShmTransport)
    pauses = []

    async def noted(ended, pause_s):
        pauses.append(pause_s)
        if len(pauses) == 9:
            ended.set()

    monkeypatch.setattr(peer.tasks, "wait", noted)

    async def main():
        async with pair("auto") as p:
            sender = p.sender(new_pool(1))
            await kv_nodes.ship(p, sender, [1], [2])
            (node,) = sender._peers.values()
            await node._improving
            assert node.transport == "tcp"

    run(main())
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
