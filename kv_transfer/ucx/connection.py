"""The sending end of a UCX connection."""

import asyncio
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, ByteConnection
from kv_transfer.ucx.link import UcxLink
from kv_transfer.ucx.process import UcxProcess
from kv_transfer.ucx_child import frames


class UcxConnection(ByteConnection):
    """One connection. Its heartbeats come from the node, not from the UCX process, so that a frozen node is silent."""

    digests = True

    def __init__(self, process: UcxProcess, link: int) -> None:
        self._link = UcxLink(process, link)
        self._on_close: Callable[[], None] | None = None  # set once the connection is open
        self._stall = StallWatch("the decode node takes no more messages over UCX", self.lose)
        self._heartbeat: Heartbeat | None = None
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._welcomed.add_done_callback(lambda welcomed: welcomed.cancelled() or welcomed.exception())

    async def open(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> None:
        """Connect, and wait for the welcome. `on_close` is called once, when the connection is lost or closed.

        Raises TransferError if the secret is refused or nobody listens; call `close` then, as after a timeout.
        """
        self._link.process.put(frames.Connect(self._link.number, host, port, secret))
        await asyncio.shield(self._welcomed)
        if self._link.is_lost:  # since the welcome
            raise TransferError("the decode node closed the connection at once")
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._on_close = on_close

    def connected(self) -> None:
        """Called when the UCX process reports that the other end has welcomed the secret."""
        if not self._welcomed.done():
            self._welcomed.set_result(None)

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """See `ByteConnection`. The copy into staging memory gathers the views."""
        if self._link.is_lost:
            raise TransferError("the UCX connection to the decode node is closed")
        self._stall.started()
        try:
            return await self._link.send(tag, views)
        finally:
            self._stall.finished()

    async def close(self) -> None:
        """See `Connection`. Waits for copies in progress."""
        self.lose()
        await self._link.quiet()

    def lose(self, reason: str = "it was closed") -> None:
        """Close the connection without waiting, or note that it was lost. Idempotent."""
        if self._link.is_lost:
            return
        self._link.lose()
        self._stall.close()
        if self._heartbeat:
            self._heartbeat.close()
        if not self._welcomed.done():
            self._welcomed.set_exception(TransferError(reason))
        if self._on_close:
            self._on_close()

    def _beat(self) -> None:
        self._link.process.put(frames.Beat(self._link.number))
