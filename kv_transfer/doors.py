"""Where a decode node can be reached for data: one listener per transport, opened when a prefill node first asks."""

import asyncio
import logging
from collections.abc import Sequence

from baton.errors import LayoutMismatch, TransferError
from kv_transfer.choose import Transports
from kv_transfer.metrics import FALLBACKS
from kv_transfer.shm.transport import host_id
from kv_transfer.transport import MAX_RETRY_S, RETRY_S, Inbox, Listener, Peer

_log = logging.getLogger(__name__)


class Doors:
    """The listeners of one node. Unless `auto` is wanted, there is one."""

    def __init__(self, wanted: str, host: str, inbox: Inbox) -> None:
        self._transports = Transports(wanted, host)
        self._host = host
        self._inbox = inbox
        self._opening = asyncio.Lock()
        self._open: dict[str, Listener] = {}
        self._put_off: dict[str, tuple[float, float]] = {}  # those that cannot be opened: until when, after what pause
        self._closed = False

    @property
    def names(self) -> str:
        """For people."""
        return ", ".join(self._transports.names)

    async def choose(self, offered: Sequence[str], host_id_: str) -> tuple[str, Listener]:
        """The first of a prefill node's transports that this node has, too, and that may carry between their hosts.

        Raises LayoutMismatch where there is none.
        """
        common = [name for name in offered if name in self._transports.names]
        if "shm" in common and host_id_ != host_id():
            common.remove("shm")
            if not common:
                raise LayoutMismatch("they are on different hosts, and transport shm is wanted")
        for name in common:
            if self._put_off.get(name, (0.0, 0.0))[0] <= asyncio.get_running_loop().time():
                try:
                    return name, await self.open(name)
                except TransferError as error:
                    await self._later(name, error)
            FALLBACKS.labels(name).inc()
        raise LayoutMismatch("they have no transport in common")

    async def open(self, name: str) -> Listener:
        """The listener of that transport. Raises TransferError where this system lacks it."""
        async with self._opening:
            if self._closed:
                raise TransferError("the decode node is stopping")
            if name not in self._open:
                try:
                    self._open[name] = await self._transports.get(name).listen(self._host, self._inbox)
                except OSError as error:  # for want of descriptors or threads
                    raise TransferError(f"transport {name} cannot be opened: {error.strerror or error}") from error
            return self._open[name]

    async def _later(self, name: str, error: TransferError) -> None:
        """Whoever connects then tries it again, with all that it needs made anew: some reasons pass."""
        pause_s = min(2 * self._put_off.get(name, (0.0, RETRY_S / 2))[1], MAX_RETRY_S)
        self._put_off[name] = asyncio.get_running_loop().time() + pause_s, pause_s
        _log.warning("KV blocks do not travel over %s (tried again after %.0f s): %s", name, pause_s, error)
        await self._transports.drop(name)

    async def start(self) -> None:
        """Open at once what is not a matter of choice, so that a node that cannot does not start."""
        if len(self._transports.names) == 1:
            await self.open(self._transports.names[0])

    async def disconnect(self, peer: Peer) -> None:
        """Returns when nothing that the peer sent is being written any more."""
        for listener in list(self._open.values()):
            await listener.disconnect(peer)

    async def close_listeners(self) -> None:
        """Accept no more, and disconnect everyone."""
        async with self._opening:
            self._closed = True
        for listener in self._open.values():
            await listener.close()

    async def close(self) -> None:
        """Release what the transports own; the listeners are closed before."""
        await self._transports.close()
