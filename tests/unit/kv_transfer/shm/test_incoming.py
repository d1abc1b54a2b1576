"""The receiving end of a shared-memory connection; the test acts as the sender."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from baton.errors import TransferError
from kv_transfer.shm import incoming as shm_incoming
from kv_transfer.shm.frames import Frame, Hello, acked
from kv_transfer.shm.host_memory import NONCE_BYTES, pack_runs, proof
from kv_transfer.shm.transport import ShmTransport, welcomed
from kv_transfer.transport import Peer
from tests.waiting import until

NUM_MESSAGES = 2000
SECRET = b"x" * 32


class Drain:
    """An inbox that drops everything, so that every message is acknowledged at once."""

    def __init__(self) -> None:
        self.is_connected = False
        self.num_disconnected = 0

    def admit(self, secret):
        if secret != SECRET:
            return None
        self.is_connected = True
        return Peer("p0", 1)

    def claim(self, tag, num_bytes, peer):
        return None

    def disconnected(self, peer):
        self.is_connected = False
        self.num_disconnected += 1


async def connected(listener):
    """A sender's socket, and its end of the receiver's."""
    nonce = memoryview(bytearray(NONCE_BYTES))
    before = set(listener._connections)
    sock = await welcomed(listener.host, Hello(SECRET, proof(nonce)))
    (incoming,) = listener._connections - before
    return sock, incoming


def gone_process():
    """A pidfd."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    descriptor = os.pidfd_open(process.pid)
    process.wait()
    return descriptor


@pytest.mark.parametrize("end", ["closes", "dies", "is closed"])
def test_a_copy_counts_only_if_the_sender_is_alive_and_has_not_revoked_it(end):
    """The copying thread checks this by itself: the event loop may not know yet."""

    async def main():
        listener = await ShmTransport().listen("", Drain())
        sock, incoming = await connected(listener)
        memory = SimpleNamespace(fetch=lambda *_: 5)
        assert incoming._copy(memory, Frame(1, 1, b""), None) == 5
        if end == "closes":
            sock.close()
        elif end == "dies":
            os.close(incoming._process)
            incoming._process = gone_process()
        else:
            incoming.start_closing()
        with pytest.raises(ConnectionError):
            incoming._copy(memory, Frame(2, 1, b""), None)
        sock.close()
        await listener.close()

    asyncio.run(main())


def test_a_sender_that_connects_again_loses_its_earlier_connection():
    async def main():
        loop, listener = asyncio.get_running_loop(), await ShmTransport().listen("", Drain())
        first, _ = await connected(listener)
        second, incoming = await connected(listener)
        async with asyncio.timeout(10):
            assert await loop.sock_recv(first, 100) == b""
        assert listener._connections == {incoming}
        for sock in (first, second):
            sock.close()
        await listener.close()

    asyncio.run(main())


def test_a_sender_that_does_not_read_for_a_while_gets_all_acknowledgements():
    """It may have hundreds of short messages in flight, for whose acknowledgements a socket buffer has no room."""

    async def main():
        loop, inbox = asyncio.get_running_loop(), Drain()
        listener = await ShmTransport().listen("", inbox)
        sock, incoming = await connected(listener)

        async def announce():
            for sequence in range(NUM_MESSAGES):
                await loop.sock_sendall(sock, Frame(sequence, 1, pack_runs([(1, 1)])).pack())

        announced = asyncio.create_task(announce())
        await until(lambda: incoming._unsent)
        assert (inbox.is_connected, incoming._reading) == (True, False)
        heard = [acked(await loop.sock_recv(sock, 100)) for _ in range(NUM_MESSAGES)]
        assert heard == list(range(NUM_MESSAGES))
        await announced
        assert not loop.remove_writer(incoming._sock.fileno())
        sock.close()
        await listener.close()

    asyncio.run(main())


def test_a_wrong_secret_closes_the_connection_and_unreadable_memory_is_refused_with_a_reason(monkeypatch):
    monkeypatch.setattr(shm_incoming, "CONNECT_TIMEOUT_S", 100.0)

    async def main():
        listener, nonce = await ShmTransport().listen("", Drain()), memoryview(bytearray(NONCE_BYTES))
        for hello, reason in (
            (Hello(b"y" * 32, proof(nonce)), "refused the connection"),
            (Hello(SECRET, b"n" * NONCE_BYTES + proof(nonce)[NONCE_BYTES:]), "may not read the prefill node's memory"),
        ):
            with pytest.raises(TransferError, match=reason):
                await welcomed(listener.host, hello)
        assert listener._connections == set()
        await listener.close()

    asyncio.run(main())


def test_only_a_connection_without_a_hello_in_time_is_closed(monkeypatch):
    monkeypatch.setattr(shm_incoming, "CONNECT_TIMEOUT_S", 0.1)

    async def main():
        loop, listener = asyncio.get_running_loop(), await ShmTransport().listen("", Drain())
        sock, incoming = await connected(listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
            mute.setblocking(False)
            await loop.sock_connect(mute, f"\0{listener.host}")
            async with asyncio.timeout(10):
                assert await loop.sock_recv(mute, 100) == b""
        assert listener._connections == {incoming}
        sock.close()
        await listener.close()

    asyncio.run(main())


def test_the_end_of_a_connection_reaches_the_sender_while_copies_still_run():
    """The inbox is told once, and nothing of the connection is left in the event loop."""

    async def main():
        loop, inbox, begun, copying = asyncio.get_running_loop(), Drain(), threading.Event(), threading.Event()
        listener = await ShmTransport().listen("", inbox)
        sock, incoming = await connected(listener)
        lost = []
        inbox.lost = lost.append
        memory = SimpleNamespace(fetch=lambda *_: begun.set() or copying.wait(10))
        incoming._start_copy(memory, Frame(1, 7, b""), None)
        await asyncio.to_thread(begun.wait, 10)
        loop.add_writer(incoming._sock.fileno(), lambda: None)  # as while acknowledgements wait for room
        incoming.start_closing()
        incoming.start_closing()
        assert await loop.sock_recv(sock, 100) == b""
        assert (lost, inbox.num_disconnected, incoming._stall._timer) == ([], 1, None)
        assert not loop.remove_writer(incoming._sock.fileno())
        process, closed = incoming._process, []
        incoming._memory = SimpleNamespace(close=lambda: closed.extend(lost))
        copying.set()
        await incoming.close()
        assert lost == closed == [7]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(process)
        sock.close()
        await listener.close()

    asyncio.run(main())


@pytest.mark.parametrize("end", ["fails", "is closed in the middle of it", "is closed when it has just ended"])
def test_a_copy_that_fails_or_outlives_its_connection_is_lost(end):
    async def main():
        loop, inbox = asyncio.get_running_loop(), Drain()
        listener = await ShmTransport().listen("", inbox)
        sock, incoming = await connected(listener)
        ends = []
        inbox.lost, inbox.arrived = ends.append, lambda tag, digest: ends.append("arrived")

        def fetch(source, slot, is_over):
            if end == "fails":
                raise OSError("no such memory")
            while end == "is closed in the middle of it" and not is_over():
                time.sleep(0.001)
            return 5

        incoming._stall.close()  # so that it does not end the connection
        incoming._start_copy(SimpleNamespace(fetch=fetch), Frame(1, 7, b""), None)
        if end != "fails":
            time.sleep(0.1)  # noqa: ASYNC251 - the copy begins, and may end
            incoming.start_closing()
        async with asyncio.timeout(10):
            assert await loop.sock_recv(sock, 100) == b""
            await incoming.close()
        assert ends == [7]
        sock.close()
        await listener.close()

    asyncio.run(main())
