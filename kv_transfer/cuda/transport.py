"""The transport between KV pools on GPUs of one host, or on a single GPU.

The receiver's GPU copies from block to block in one pass, over NVLink or PCIe or within its memory: nothing is staged,
and no byte passes through host memory. The processes talk over the same kind of socket as in `kv_transfer.shm`.
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
    """The transport. Raises TransferError if the pool's memory cannot be shared with other processes."""

    name = "cuda"

    def __init__(self, blocks: DeviceBlocks) -> None:
        self._blocks = blocks
        self._exported = exported(blocks)

    async def listen(self, host: str, inbox: Inbox) -> ShmListener:
        """Listen under a fresh socket name, which becomes `Listener.host`. `host` is not used, and there is no port."""
        return ShmListener(inbox, lambda pid, claim: DeviceMemory(self._blocks, claim))

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> "CudaConnection":
        """See `Transport`. `host` is the listener's name. Raises TransferError also if it cannot read this pool."""
        sock = await welcomed(host, Hello(secret, self._exported))
        return CudaConnection(sock, on_close, self._blocks)


class CudaConnection(FetchedConnection, BlockConnection):
    """Sends blocks of this node's pool."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], blocks: DeviceBlocks) -> None:
        super().__init__(sock, on_close)
        self._blocks = blocks

    async def digest(self, places: Sequence[int]) -> int:
        """See `BlockConnection`."""
        return await self._blocks.digest(places)

    async def send(self, tag: int, places: Sequence[int]) -> None:
        """See `BlockConnection`. Returns when the receiver has copied all blocks."""
        await self.fetched(tag, pack_places(places))
