"""Every slot that the inbox gives to a message gets its end, and a peer has one connection."""

import asyncio

import pytest

from baton.errors import TransferError
from kv_transfer import stall
from kv_transfer.staging import Staging
from kv_transfer.transport import Slot
from kv_transfer.ucx import listener as ucx_listener
from kv_transfer.ucx.listener import UcxListener
from kv_transfer.ucx_child import frames
from tests.waiting import until

SIZE = 64 * 1024
PEER, OTHER = "a", "b"


class Process:
    """A process in which UCX ends a message when the test says so."""

    port = 7

    def __init__(self):
        self.staging = Staging(SIZE)
        self.receiving, self.told, self.closed = asyncio.Queue(), [], []
        self.put, self.close_link = self.told.append, self.closed.append

    def start_receive(self, message, link, area, on_end):
        self.receiving.put_nowait(on_end)


class Inbox:
    """Expects the message of tag 1 from PEER, and that of tag 2 from OTHER, which is not connected."""

    def __init__(self):
        self.ends = []

    def admit(self, secret):
        return PEER if secret == b"good" else None

    def claim(self, tag, num_bytes, peer):
        return {1: Slot(PEER, [memoryview(bytearray(SIZE))]), 2: Slot(OTHER, [])}.get(tag)

    def arrived(self, tag, digest=None):
        self.ends.append(("arrived", tag))

    def lost(self, tag):
        self.ends.append(("lost", tag))

    def disconnected(self, peer):
        self.ends.append(("disconnected", peer))


def run(scenario):
    async def main():
        process, inbox = Process(), Inbox()
        listener = UcxListener(process, "localhost", inbox)
        listener.hear(frames.Hello(3, b"good"))
        assert process.told == [frames.Listen(), frames.Admit(3)]
        process.told.clear()
        async with asyncio.timeout(10):
            await scenario(listener, process, inbox)
            await listener.close()
        process.staging.close()

    asyncio.run(main())


@pytest.mark.parametrize(("error", "end"), [(None, "arrived"), (TransferError("UCX: reset"), "lost")])
def test_a_message_ends_once(error, end):
    async def scenario(listener, process, inbox):
        listener.hear(frames.Waiting(9, 1, SIZE))
        on_end = await process.receiving.get()
        (receiving,) = listener._by_peer[PEER]._tasks
        on_end(error)
        await receiving
        assert inbox.ends == [(end, 1)]

    run(scenario)


def test_a_message_that_nobody_can_receive_is_dropped():
    async def scenario(listener, process, inbox):
        listener.hear(frames.Waiting(9, 2, SIZE))  # its sender is not connected
        listener.hear(frames.Waiting(10, 3, SIZE))  # not expected
        assert process.told == [frames.Drop(9), frames.Drop(10)]
        assert inbox.ends == [("lost", 2)]

    run(scenario)


def test_a_connection_replaces_an_older_one_of_the_peer_and_a_stranger_is_refused():
    async def scenario(listener, process, inbox):
        listener.hear(frames.Hello(4, b"bad"))
        assert process.closed == [4]
        listener.hear(frames.Hello(5, b"good"))
        assert process.closed == [4, 3]
        listener.hear(frames.Gone(3, "closed"))  # the older one
        assert inbox.ends == [("disconnected", PEER)]
        assert process.told == [frames.Admit(5)]
        assert listener._by_peer[PEER].link.number == 5
        listener.hear(frames.Gone(5, "closed"))
        assert (listener._by_peer, listener._by_link) == ({}, {})

    run(scenario)


def test_a_peer_lives_as_long_as_its_heart_beats(monkeypatch):
    monkeypatch.setattr(stall, "TICK_S", 0.01)

    async def scenario(listener, process, inbox):
        for _ in range(2 * stall.MOST_TICKS):
            listener.hear(frames.Heard(3))
            await asyncio.sleep(stall.TICK_S)
        assert inbox.ends == []
        await until(lambda: inbox.ends)
        assert (process.closed, inbox.ends) == ([3], [("disconnected", PEER)])

    run(scenario)


@pytest.mark.parametrize("end", ["disconnect", "close"])
def test_a_connection_has_ended_when_its_last_copy_has(end):
    async def scenario(listener, process, inbox):
        copying = asyncio.get_running_loop().create_future()
        process.staging.empty = lambda *_: copying
        listener.hear(frames.Waiting(9, 1, SIZE))
        (await process.receiving.get())(None)
        await asyncio.sleep(0)
        incoming = listener._by_peer[PEER]
        ending = asyncio.create_task(listener.disconnect(PEER) if end == "disconnect" else listener.close())
        await asyncio.sleep(0.01)
        assert (ending.done(), inbox.ends) == (False, [("disconnected", PEER)])
        copying.set_result(5)
        await ending
        await incoming.close()
        assert inbox.ends == [("disconnected", PEER), ("arrived", 1)]
        assert (incoming._tasks, incoming._stall._timer) == (set(), None)

    run(scenario)


def test_it_is_ready_while_its_process_listens(monkeypatch):
    monkeypatch.setattr(ucx_listener, "CONNECT_TIMEOUT_S", 0.05)

    async def scenario(listener, process, inbox):
        for next_process in (process, Process()):
            listener.attach(next_process)
            assert next_process.told == [frames.Listen()]
            with pytest.raises(TransferError, match="not listening"):
                await listener.ready()
            listener.hear(frames.Listening(7))
            await listener.ready()
            listener.lose()  # the process has ended
        assert inbox.ends == [("disconnected", PEER)]
        assert (listener._by_peer, listener._by_link) == ({}, {})

    run(scenario)
