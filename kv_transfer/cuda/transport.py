"""The transport between pools on GPUs of one host, or on one GPU: the receiver's fetches blocks from the sender's.

One pass over NVLink or PCIe, or within the GPU's memory, from block to block: nothing is staged, and no byte passes
through the host. The two processes talk over the same kind of socket as for host memory (`kv_transfer.shm`).
"""

import socket
from collections.abc import Callable, Sequence

from kv_transfer.cuda.device_memory import DeviceMemory, exported, pack_places
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.shm.frames import Hello
from kv_transfer.shm.outgoing import FetchedConnection
from kv_transfer.shm.transport import ShmListener, welcomed
from kv_transfer.transport import BlockConnection, Inbox, Transport


class CudaTransport(Transport):
    """One connection for each pair of nodes. Raises TransferError where the pool's memory cannot be shared."""

    name = "cuda"

    def __init__(self, blocks: DeviceBlocks) -> None:
        self._blocks = blocks
        self._exported = exported(blocks)

    async def listen(self, host: str, inbox: Inbox) -> ShmListener:
        """On a fresh name: `host` does not matter, and there is no port."""
        return ShmListener(inbox, lambda pid, claim: DeviceMemory(self._blocks, claim))

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> "CudaConnection":
        """`host` is the listener's name. Raises TransferError also where its GPU cannot read this one's memory."""
        sock = await welcomed(host, Hello(secret, self._exported))
        return CudaConnection(sock, on_close, self._blocks)


class CudaConnection(FetchedConnection, BlockConnection):
    """Messages lie in this node's pool."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], blocks: DeviceBlocks) -> None:
        super().__init__(sock, on_close)
        self._blocks = blocks

    async def digest(self, places: Sequence[int]) -> int:
        """See `BlockConnection`."""
        return await self._blocks.digest(places)

    async def send(self, tag: int, places: Sequence[int]) -> None:
        """Returns when the receiver has all of it."""
        await self.fetched(tag, pack_places(places))
