"""What ending a peer waits for: connections (opening, retired, open), and commits that may yet be accepted."""

import asyncio

import pytest

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from kv_transfer import peer as peers
from kv_transfer.peer import DecodePeer
from kv_transfer.transport import ByteConnection
from tests.virtual_clock import run

RETRY_S, SLOW_S = 10.0, 4.0


class Wire(ByteConnection):
    """A connection that takes a while to close, a slow one twice as long."""

    def __init__(self, name, story, on_lost) -> None:
        self.name, self.story, self.lose = name, story, on_lost

    async def send(self, tag, views):
        raise NotImplementedError

    async def close(self):
        await asyncio.sleep(2 * SLOW_S if self.name == "slow" else SLOW_S)
        self.story.append(f"{self.name} closed")


class Node:
    """The decode node, as connector and channel: the second connection uses a better transport."""

    def __init__(self, monkeypatch) -> None:
        self.story, self.wires = [], []
        self.may_connect, self.may_accept = asyncio.Event(), asyncio.Event()
        self.may_connect.set()
        monkeypatch.setattr(peers, "Connector", lambda *_: self)
        monkeypatch.setattr(peers, "RETRY_S", RETRY_S)

    async def connect(self, names, on_lost):
        await self.may_connect.wait()
        name, better = ("slow", ["fast"]) if "slow" in names else ("fast", [])
        self.wires.append(Wire(name, self.story, on_lost))
        return self.wires[-1], name, better

    def unary_unary(self, path, **_):
        async def call(request, **_):
            await self.may_accept.wait()
            self.story.append("accepted")

        return call

    async def close(self):
        self.story.append("channel closed")

    def peer(self, *names):
        transports = type("Names", (), {"names": names})
        return DecodePeer("", 1, self, "", None, transports, lambda _: self.story.append("over"))


class Transfer:
    error = None

    def peer_ended(self, error):
        self.error = error


def test_the_channel_is_closed_after_pending_commits(monkeypatch):
    async def main(clock):
        node, transfer = Node(monkeypatch), Transfer()
        peer = node.peer("fast")
        peer.enter(transfer)
        await peer.connected()
        commit = asyncio.create_task(peer.commit(transfer_pb2.CommitRequest(), 60.0))
        await asyncio.sleep(0)
        closing = asyncio.create_task(peer.close())
        await asyncio.sleep(2 * SLOW_S)
        assert node.story == ["over", "fast closed"]
        assert transfer.error is not None
        with pytest.raises(TransferError):
            await peer.connected()
        node.may_accept.set()
        await commit
        await closing
        assert node.story[2:] == ["accepted", "channel closed"]

    run(main)


def test_a_connection_that_opens_during_the_end_is_closed_first(monkeypatch):
    async def main(clock):
        node = Node(monkeypatch)
        node.may_connect.clear()
        peer = node.peer("fast")
        closing = asyncio.create_task(peer.close_connection())
        await asyncio.sleep(1.0)
        assert not closing.done()
        node.may_connect.set()
        await closing
        assert node.story[:2] == ["over", "fast closed"]

    run(main)


def test_a_better_connection_that_opens_during_the_end_is_closed_too(monkeypatch):
    async def main(clock):
        node = Node(monkeypatch)
        peer = node.peer("slow", "fast")
        await peer.connected()
        node.may_connect.clear()
        await asyncio.sleep(RETRY_S)
        closing = asyncio.create_task(peer.close())
        await asyncio.sleep(3 * SLOW_S)
        assert node.story == ["over", "slow closed"]
        node.may_connect.set()
        await closing
        assert node.story[2:] == ["fast closed", "channel closed"]

    run(main)


def test_its_end_does_not_wait_for_the_next_retry(monkeypatch):
    async def main(clock):
        node = Node(monkeypatch)
        peer = node.peer("slow", "fast")
        await peer.connected()
        await peer.close()
        assert clock.now < RETRY_S
        assert node.story == ["over", "slow closed", "channel closed"]

    run(main)


@pytest.mark.parametrize("has_left", [True, False])
def test_a_connection_is_retired_when_all_its_transfers_have_ended(monkeypatch, has_left):
    async def main(clock):
        node, old, new = Node(monkeypatch), Transfer(), Transfer()
        peer = node.peer("slow", "fast")
        peer.enter(old)
        await peer.connected()
        await asyncio.sleep(RETRY_S)
        peer.enter(new)
        assert peer.transport == "fast"
        if has_left:
            peer.leave(old)
        await asyncio.sleep(SLOW_S / 2)
        node.wires[0].lose()  # closing may be told as a loss
        assert (peer.error is None) == (new.error is None) == has_left
        await peer.close_connection()
        assert len(node.story) == 3  # both are closed

    run(main)


def test_a_connection_that_is_retired_while_the_peer_ends_hides_no_other(monkeypatch):
    async def main(clock):
        node, old = Node(monkeypatch), Transfer()
        peer = node.peer("slow", "fast")
        peer.enter(old)
        await peer.connected()
        await asyncio.sleep(RETRY_S)
        closing = asyncio.create_task(peer.close_connection())
        await asyncio.sleep(1.0)
        peer.leave(old)  # its blocks are free: the slow connection, which is being closed, is retired
        await closing
        assert "fast closed" in node.story

    run(main)


def test_a_transfer_that_has_ended_keeps_no_old_connection_open(monkeypatch):
    async def main(clock):
        node, ended = Node(monkeypatch), Transfer()
        peer = node.peer("slow", "fast")
        peer.enter(ended)
        await peer.connected()
        peer.leave(ended)
        await asyncio.sleep(RETRY_S + 3 * SLOW_S)
        assert node.story == ["slow closed"]
        await peer.close()
        assert ended.error is None

    run(main)
