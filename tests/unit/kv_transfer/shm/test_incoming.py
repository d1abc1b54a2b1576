"""The receiving end of a shared-memory connection; the test acts as the sender."""

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kv_transfer.shm.frames import Frame, Hello, acked
from kv_transfer.shm.host_memory import NONCE_BYTES, pack_runs, proof
from kv_transfer.shm.transport import ShmTransport, welcomed
from kv_transfer.transport import Peer

NUM_MESSAGES = 2000


class Drain:
    """An inbox that drops everything, so that every message is acknowledged at once."""

    def __init__(self) -> None:
        self.is_connected = False

    def admit(self, secret):
        self.is_connected = True
        return Peer("p0", 1)

    def claim(self, tag, num_bytes, peer):
        return None

    def disconnected(self, peer):
        self.is_connected = False


async def connected(listener):
    """A sender's socket, and its end of the receiver's."""
    nonce = memoryview(bytearray(NONCE_BYTES))
    before = set(listener._connections)
    sock = await welcomed(listener.host, Hello(b"x" * 32, proof(nonce)))
    (incoming,) = listener._connections - before
    return sock, incoming


def gone_process():
    """A pidfd."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    descriptor = os.pidfd_open(process.pid)
    process.wait()
    return descriptor


@pytest.mark.parametrize("end", ["closes", "dies", "is closed"])
def test_what_was_copied_counts_only_if_the_sender_still_lives_and_wants_it(end):
    """Whoever copies looks for itself: the event loop may not have heard of it yet."""

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


def test_a_sender_that_has_no_time_to_read_loses_nothing():
    """It may have hundreds of short messages in flight, for whose acknowledgements a socket buffer has no room."""

    async def main():
        loop, inbox = asyncio.get_running_loop(), Drain()
        listener = await ShmTransport().listen("", inbox)
        sock, incoming = await connected(listener)

        async def announce():
            for sequence in range(NUM_MESSAGES):
                await loop.sock_sendall(sock, Frame(sequence, 1, pack_runs([(1, 1)])).pack())

        announced = asyncio.create_task(announce())
        while not incoming._unsent:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert inbox.is_connected
        heard = [acked(await loop.sock_recv(sock, 100)) for _ in range(NUM_MESSAGES)]
        assert heard == list(range(NUM_MESSAGES))
        await announced
        sock.close()
        await listener.close()

    asyncio.run(main())
