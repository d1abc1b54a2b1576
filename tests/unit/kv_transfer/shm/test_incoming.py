"""The receiving end of a shared-memory connection; the test acts as the sender."""

import asyncio

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


def test_a_sender_that_has_no_time_to_read_loses_nothing():
    """It may have hundreds of short messages in flight, for whose acknowledgements a socket buffer has no room."""

    async def main():
        loop, inbox = asyncio.get_running_loop(), Drain()
        listener = await ShmTransport().listen("", inbox)
        nonce = memoryview(bytearray(NONCE_BYTES))
        sock = await welcomed(listener.host, Hello(b"x" * 32, proof(nonce)))
        (incoming,) = listener._connections

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
