"""A decode node's listeners for data connections: one per transport, opened when a prefill node first asks for it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from baton.errors import LayoutMismatch, TransferError
from baton.process import tasks
from kv_transfer.choose import Transports
from kv_transfer.metrics import FALLBACKS
from kv_transfer.shm.transport import host_id
from kv_transfer.transport import MAX_RETRY_S, PATIENCE_S, RETRY_S, WITHIN_HOST, Inbox, Listener, Peer

if TYPE_CHECKING:
    from kv_transfer.device_blocks import DeviceBlocks

_log = logging.getLogger(__name__)


class Listeners:
    """The listeners of one node: a single one, unless `wanted` is `auto`."""

    def __init__(
        self, wanted: str, host: str, inbox_of: Callable[[str], Inbox], gpu_blocks: "DeviceBlocks | None" = None
    ) -> None:
        """`inbox_of(name)` makes the inbox of that transport's listener. `wanted`, `gpu_blocks`: see `Transports`."""
        self._transports = Transports(wanted, host, gpu_blocks)
        self._host = host
        self._inbox_of = inbox_of
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, Listener] = {}
        self._put_off: dict[str, tuple[float, float]] = {}  # failed transports: (not retried before, pause_s)
        self._closed = False

    @property
    def names(self) -> str:
        """The transports' names, for messages."""
        return ", ".join(self._transports.names)

    async def choose(self, offered: Sequence[str], host_id_: str) -> tuple[str, Listener]:
        """Choose the first offered transport that this node also has and that can work between the two hosts.

        A transport that is slow to open is skipped for now if there is another one. Raises LayoutMismatch if there is
        no common transport, TransferError if none of them can be opened at present.
        """
        common = [name for name in offered if name in self._transports.names]
        if common and host_id_ != host_id():
            only_within, common = common, [name for name in common if name not in WITHIN_HOST]
            if not common:
                raise LayoutMismatch(f"they are on different hosts, and transport {only_within[0]} is wanted")
        for name in common:
            if self._put_off.get(name, (0.0, 0.0))[0] <= asyncio.get_running_loop().time():
                try:
                    return name, await (self.open(name) if name == common[-1] else self._open_soon(name))
                except TransferError as error:
                    _log.info("KV blocks do not travel over %s: %s", name, error)
            FALLBACKS.labels(name).inc()
        if common:
            raise TransferError(f"the decode node cannot open transport {' or '.join(common)} at present")
        raise LayoutMismatch("they have no transport in common")

    async def open(self, name: str) -> Listener:
        """Return the listener of this transport, opening it if needed. Raises TransferError if it cannot be opened."""
        opening = self._opening.get(name)
        if opening is None or (opening.done() and name not in self._open):
            opening = self._opening[name] = asyncio.create_task(self._listen(name))
            # marks the exception as retrieved: perhaps nobody is waiting any more
            opening.add_done_callback(lambda opening: opening.cancelled() or opening.exception())
        await asyncio.shield(opening)
        return self._open[name]

    async def _open_soon(self, name: str) -> Listener:
        """Open the listener, waiting PATIENCE_S at most; it goes on opening in the background for later connects."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                listener = await self.open(name)
                await listener.ready()
        except TimeoutError:
            raise TransferError("the transport is still starting on the decode node") from None
        return listener

    async def _listen(self, name: str) -> None:
        if self._closed:
            raise TransferError("the decode node is stopping")
        try:
            try:
                self._open[name] = await self._transports.get(name).listen(self._host, self._inbox_of(name))
            except OSError as error:  # such as too few descriptors or threads
                raise TransferError(f"transport {name} cannot be opened: {error.strerror or error}") from error
        except TransferError as error:
            await self._put_off_retry(name, error)
            raise

    async def _put_off_retry(self, name: str, error: TransferError) -> None:
        """Skip the transport for a while, then let the next connect make a new one: what made it fail may pass."""
        pause_s = min(2 * self._put_off.get(name, (0.0, RETRY_S / 2))[1], MAX_RETRY_S)
        self._put_off[name] = asyncio.get_running_loop().time() + pause_s, pause_s
        _log.warning("KV blocks do not travel over %s (tried again after %.0f s): %s", name, pause_s, error)
        await self._transports.drop(name)

    async def start(self) -> None:
        """Open the listener at once if there is only one transport, so that a node where it fails does not start."""
        if len(self._transports.names) == 1:
            await self.open(self._transports.names[0])

    async def disconnect(self, peer: Peer) -> None:
        """Close the peer's connections. Returns when nothing that it sent is being written any more."""
        for listener in list(self._open.values()):
            await listener.disconnect(peer)

    async def close_listeners(self) -> None:
        """Accept no more, and disconnect everyone."""
        self._closed = True
        for opening in list(self._opening.values()):  # connects may still come
            await tasks.end(opening)
        for listener in self._open.values():
            await listener.close()

    async def close(self) -> None:
        """Release what the transports own. Call `close_listeners` first."""
        await self._transports.close()
