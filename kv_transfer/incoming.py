"""One transfer on its way in.

1. `KVReceiver.grant` offers blocks; the lease runs from then on.
2. Messages claim their place, one by one, while the lease lasts; each claim is written until it has arrived or is lost.
   Each that arrives renews the lease.
3. The commit names every digest. It is accepted when all messages are there, all digests are right, and the lease still
   lasts: looked at after the copy, in this order, without an await in between.
4. Unless it was accepted, the blocks are free only when `cancel` has returned.
"""

import asyncio
import enum
from collections.abc import Awaitable, Callable

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from kv_transfer.digest import Digester
from kv_transfer.metrics import FAILURES
from kv_transfer.plan import Message
from kv_transfer.pool import InPlace, Landing, Pool, places_of
from kv_transfer.transport import IN_PLACE, Peer, Slot

_CANCEL_GRACE_S = 1.0  # for a message under way to end by itself; then its connection ends: streams may want the blocks
_MISSING_S = 2.0  # after a commit, a message that still does not come for so long is missing


class TransferState(enum.Enum):
    """Of an incoming transfer; nothing leaves the last two."""

    OPEN = "open"
    ACCEPTED = "accepted"
    FAILED = "failed"


class IncomingTransfer:
    """Created by KVReceiver.grant; all of it runs in the event loop."""

    def __init__(
        self, grant: transfer_pb2.Grant, peer: Peer, plan: list[Message], block_ids: list[int], pool: Pool,
        digester: Digester, expected_hash: bytes, forget: Callable[["IncomingTransfer"], None],
        disconnect: Callable[[Peer], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.grant = grant
        self.peer = peer
        self.state = TransferState.OPEN
        self.transports: set[str] = set()  # over which messages have claimed their places
        self._plan = plan
        self._block_ids = block_ids
        self._pool = pool
        self._digester = digester
        self._expected_hash = expected_hash
        self._forget = forget
        self._disconnect = disconnect
        self._loop = asyncio.get_running_loop()
        self._writing: dict[int, Landing] = {}  # of messages that are being received
        self._digests: dict[int, asyncio.Future[int]] = {}  # of messages that arrived; done when they are in the pool
        self._moved = asyncio.Event()
        self._result: asyncio.Future[transfer_pb2.CommitRequest] = self._loop.create_future()
        self._result.add_done_callback(lambda result: result.cancelled() or result.exception())
        self._lease_end_s = 0.0
        self._lease_timer: asyncio.TimerHandle | None = None
        self.renew(grant.lease_ms / 1000)

    def renew(self, lease_s: float) -> None:
        """Let the lease last at least that long from now. Without effect on one that has ended."""
        end_s = self._loop.time() + lease_s
        if self.state is TransferState.OPEN and end_s > self._lease_end_s:
            self._lease_end_s = end_s
            if not self._lease_timer:
                self._watch_lease()

    async def committed(self) -> transfer_pb2.CommitRequest:
        """The accepted commit: from now on the blocks are whole, and written by nobody.

        Raises TransferError when that cannot happen any more; call `cancel` then.
        """
        return await asyncio.shield(self._result)

    async def cancel(self) -> None:
        """Idempotent. Returns when nothing can be written into the blocks any more: only then may they be reused.

        Messages under way are waited for as long as one after the other ends, so the connection and its other transfers
        live on.
        """
        self.fail("cancelled", "the decode node cancelled it")
        try:
            await self._quiet(_CANCEL_GRACE_S)
        except TimeoutError:
            await self._disconnect(self.peer)
            await self._quiet(None)
        await asyncio.gather(*self._digests.values(), return_exceptions=True)
        self._forget(self)

    def claim(self, index: int, num_bytes: int, transport: str) -> Slot | None:
        """Where message `index` goes; None unless it is expected now."""
        if not self._live() or index >= len(self._plan) or index in self._writing or index in self._digests:
            return None
        message = self._plan[index]
        block_ids = self._block_ids[message.first : message.first + message.num_blocks]
        if len(message.layer_groups) * len(block_ids) * self._pool.layout.block_group_bytes != num_bytes:
            return None
        in_place = transport in IN_PLACE
        landing = InPlace() if in_place else self._pool.land(message.layer_groups, block_ids)
        if landing is None:
            self.fail("staging", "too many messages arrive at once")
            return None
        self.transports.add(transport)
        places = places_of(self._pool, message.layer_groups, block_ids) if in_place else ()
        self._writing[index] = landing
        return Slot(self.peer, landing.views, places)

    def arrived(self, index: int, digest: int | None) -> None:
        """Message `index` is in its slot."""
        landing = self._writing.pop(index)
        if self.state is TransferState.OPEN:
            self._digests[index] = landing.settle(self._digester, digest)
            self.renew(self.grant.lease_ms / 1000)  # on a slow link it may well take longer than that
        else:
            landing.drop()
        self._moved.set()

    def lost(self, index: int) -> None:
        """Message `index` is no longer being written, and not whole."""
        self._writing.pop(index).drop()
        self.fail("peer_lost", "the connection to the prefill node was lost")
        self._moved.set()

    def fail(self, reason: str, message: str) -> None:
        """Accept nothing more. `reason` is a metric's label. Without effect on what is accepted or failed."""
        if self.state is TransferState.OPEN:
            self._end(TransferState.FAILED)
            FAILURES.labels(reason).inc()
            self._result.set_exception(TransferError(f"the transfer failed: {message}"))
            self._moved.set()

    async def accept(self, request: transfer_pb2.CommitRequest) -> None:
        """Check a commit and accept it, or raise TransferError: then the transfer has failed."""
        if len(request.digests) != len(self._plan):
            self.fail("commit", f"its commit has {len(request.digests)} digests for {len(self._plan)} messages")
        elif request.last_block_hash != self._expected_hash:
            self.fail("commit", "prefill and decode node disagree about its tokens")
        else:
            await self._all_arrived()
            await self._check(request)
        if self._live():  # looked at after the copy and after the digests
            self._end(TransferState.ACCEPTED)
            self._result.set_result(request)
            self._forget(self)
        if self.state is TransferState.FAILED:
            await self._result

    def _watch_lease(self) -> None:
        """Looks again when it would have ended: most renewals come before."""
        self._lease_timer = self._loop.call_at(self._lease_end_s, self._watch_lease) if self._live() else None

    def _live(self) -> bool:
        if self._loop.time() >= self._lease_end_s:
            self.fail("lease", "the lease of its blocks ended")
        return self.state is TransferState.OPEN

    def _end(self, state: TransferState) -> None:
        self.state = state
        if self._lease_timer:
            self._lease_timer.cancel()

    async def _check(self, request: transfer_pb2.CommitRequest) -> None:
        """The digests of what is in the blocks now."""
        try:
            # a call that ends meanwhile does not end what is written into the blocks
            actual = [await asyncio.shield(self._digests[index]) for index in sorted(self._digests)]
        except TransferError as error:
            self.fail("copy", error.message)
            return
        if self.state is TransferState.OPEN and actual != list(request.digests):
            self.fail("digest", "the blocks that arrived are not those that were sent")

    async def _all_arrived(self) -> None:
        """Until every message has arrived, or the transfer has failed."""
        while self.state is TransferState.OPEN and len(self._digests) < len(self._plan):
            self._moved.clear()
            try:
                async with asyncio.timeout(_MISSING_S):
                    await self._moved.wait()
            except TimeoutError:
                num_missing = len(self._plan) - len(self._digests)
                self.fail("missing", f"{num_missing} of {len(self._plan)} messages did not arrive")

    async def _quiet(self, patience_s: float | None) -> None:
        """Until no message is being written. TimeoutError where none has ended for so long."""
        while self._writing:
            self._moved.clear()
            async with asyncio.timeout(patience_s):
                await self._moved.wait()
