"""Connections within a host: how many are accepted, and what is left of them when they end or are refused."""

import asyncio
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from baton.errors import TransferError
from kv_transfer.shm import process_memory
from kv_transfer.shm import transport as shm
from kv_transfer.shm.frames import Frame
from kv_transfer.shm.transport import ShmTransport
from kv_transfer.transport import Peer
from tests.waiting import until

SECRET = b"x" * 32
PEER = Peer("p0", 1)


class Inbox:
    """Everybody who shows SECRET is PEER."""

    def admit(self, secret):
        return PEER if secret == SECRET else None

    def lost(self, tag):
        pass

    def disconnected(self, peer):
        pass


def run(main):
    async def bounded():
        async with asyncio.timeout(10):
            await main

    asyncio.run(bounded())


async def connected(listener):
    """A connection, and an event that is set when it has been closed."""
    closed = asyncio.Event()
    return await ShmTransport().connect(listener.host, 0, SECRET, closed.set), closed


async def without_secret(listener) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, f"\0{listener.host}")
    return sock


@pytest.mark.parametrize("end", ["disconnect", "close"])
def test_a_connection_has_ended_when_its_last_copy_has(end):
    async def main():
        listener, begun, copying = await ShmTransport().listen("", Inbox()), threading.Event(), threading.Event()
        connection, closed = await connected(listener)
        (incoming,) = listener._connections
        memory = SimpleNamespace(fetch=lambda *_: begun.set() or copying.wait(10))
        incoming._start_copy(memory, Frame(1, 7, b""), None)
        await asyncio.to_thread(begun.wait, 10)
        ending = asyncio.create_task(listener.disconnect(PEER) if end == "disconnect" else listener.close())
        await closed.wait()
        await asyncio.sleep(0.01)
        assert not ending.done()
        copying.set()
        await ending
        assert listener._connections == set()
        await connection.close()
        await listener.close()

    run(main())


def test_after_its_close_nothing_is_accepted_and_no_thread_is_left():
    async def main():
        listener = await ShmTransport().listen("", Inbox())
        await listener.close()
        with pytest.raises(TransferError, match="it is on another host"):
            await connected(listener)
        for thread in listener._copiers._threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    run(main())


def test_connections_without_a_secret_are_limited(monkeypatch):
    monkeypatch.setattr(shm, "_MAX_UNADMITTED", 1)

    async def main():
        listener = await ShmTransport().listen("", Inbox())
        connection, _ = await connected(listener)  # has shown its secret
        first = await without_secret(listener)
        with await without_secret(listener) as second:
            assert await asyncio.get_running_loop().sock_recv(second, 100) == b""
        with pytest.raises(BlockingIOError):
            first.recv(100)
        first.close()
        await connection.close()
        await listener.close()

    run(main())


def test_a_failed_connect_says_why_and_leaves_no_socket_behind(monkeypatch):
    monkeypatch.setattr(shm, "CONNECT_TIMEOUT_S", 0.05)

    async def main():
        listener = await ShmTransport().listen("", Inbox())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
            mute.bind("\0baton-kv-mute")
            mute.listen()
            before = os.listdir("/proc/self/fd")
            for name, secret, reason in ((listener.host, b"y" * 32, "refused"), ("baton-kv-mute", SECRET, "timed out")):
                with pytest.raises(TransferError, match=reason) as error:
                    await ShmTransport().connect(name, 0, secret, lambda: None)
                await until(lambda: not listener._connections)
                assert os.listdir("/proc/self/fd") == before
                assert error.traceback  # which would hold the socket
        await listener.close()

    run(main())


def test_memory_is_readable_for_siblings_before_the_secret_is_sent(monkeypatch):
    calls = []
    monkeypatch.setattr(process_memory, "allow_siblings", lambda: calls.append("allowed"))
    monkeypatch.setattr(Inbox, "admit", lambda *_: calls.append("asked"))

    async def main():
        listener = await ShmTransport().listen("", Inbox())
        with pytest.raises(TransferError):
            await connected(listener)
        await listener.close()

    run(main())
    assert calls == ["allowed", "asked"]
