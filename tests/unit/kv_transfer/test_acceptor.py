"""Connections are accepted as they come. Without a free descriptor they wait, and the event loop does not spin."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import uvloop

from kv_transfer.acceptor import Acceptor


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_without_a_free_descriptor_waits_for_one():
    async def main():
        listener, client, late = socket.socket(), socket.socket(), socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        taken: asyncio.Queue[socket.socket] = asyncio.Queue()
        tries = []

        class Counted(Acceptor):
            def _accept(self):
                tries.append(1)
                super()._accept()

        acceptor = Counted(listener, taken.put_nowait)
        with no_descriptor_left():
            client.connect(address)
            await asyncio.sleep(0.3)
            assert taken.empty()
            assert 1 <= len(tries) < 10
        async with asyncio.timeout(5):
            (await taken.get()).close()
        with no_descriptor_left():
            late.connect(address)
            await asyncio.sleep(0.05)
            acceptor.close()  # in the pause
            acceptor.close()
        num_tries = len(tries)
        await asyncio.sleep(0.3)
        assert len(tries) == num_tries
        client.close()
        late.close()

    uvloop.run(main())
