"""One incoming transfer: the decode node's side of receiving a request's KV blocks.

1. `KVReceiver.grant` offers blocks; the lease starts then.
2. While the lease lasts, each message claims its destination, and its blocks are being written from then until the
   message has arrived or is lost. Each arrival renews the lease.
3. The commit carries the digest of every message. It is accepted if all messages have arrived, all digests match, and
   the lease still holds. The lease is checked last, after the copies, with no await between check and acceptance.
4. If the transfer is not accepted, the blocks may be reused only once `cancel` has returned.
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

_CANCEL_GRACE_S = 1.0  # how long `cancel` waits for a message in flight before it closes the peer's connection
_MISSING_S = 2.0  # after a commit, the transfer fails if messages are missing and none arrives for this long


class TransferState(enum.Enum):
    """The state of an incoming transfer; ACCEPTED and FAILED are final."""

    OPEN = "open"
    ACCEPTED = "accepted"
    FAILED = "failed"


class IncomingTransfer:
    """One transfer, created by `KVReceiver.grant`. All methods run in the event loop."""

    def __init__(
        self, grant: transfer_pb2.Grant, peer: Peer, plan: list[Message], block_ids: list[int], pool: Pool,
        digester: Digester, expected_hash: bytes, forget: Callable[["IncomingTransfer"], None],
        disconnect: Callable[[Peer], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.grant = grant
        self.peer = peer
        self.state = TransferState.OPEN
        self.transports: set[str] = set()  # those over which it has received messages
        self._plan = plan
        self._block_ids = block_ids
        self._pool = pool
        self._digester = digester
        self._expected_hash = expected_hash
        self._forget = forget
        self._disconnect = disconnect
        self._loop = asyncio.get_running_loop()
        self._writing: dict[int, Landing] = {}  # by index of the message being received
        self._digests: dict[int, asyncio.Future[int]] = {}  # of messages that have arrived; done once in the pool
        self._progress = asyncio.Event()
        self._result: asyncio.Future[transfer_pb2.CommitRequest] = self._loop.create_future()
        self._result.add_done_callback(lambda result: result.cancelled() or result.exception())
        self._lease_end_s = 0.0
        self._lease_timer: asyncio.TimerHandle | None = None
        self.renew(grant.lease_ms / 1000)

    def renew(self, lease_s: float) -> None:
        """Extend the lease to at least `lease_s` from now. No effect once the transfer is accepted or has failed."""
        end_s = self._loop.time() + lease_s
        if self.state is TransferState.OPEN and end_s > self._lease_end_s:
            self._lease_end_s = end_s
            if not self._lease_timer:
                self._watch_lease()

    async def committed(self) -> transfer_pb2.CommitRequest:
        """Wait for the accepted commit. From then on the blocks are complete and no longer written.

        Raises TransferError if the transfer fails; call `cancel` then.
        """
        return await asyncio.shield(self._result)

    async def cancel(self) -> None:
        """Fail the transfer. Idempotent. Returns when nothing can write to its blocks; only then may they be reused.

        Messages in flight are waited for, so that the connection stays usable for other transfers. The peer is
        disconnected only if no message ends within _CANCEL_GRACE_S.
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
        """Return where to write message `index`, or None if it is not expected now or cannot be received."""
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
        """Called when all of message `index` is in its slot. `digest`: if the transport has computed it."""
        landing = self._writing.pop(index)
        if self.state is TransferState.OPEN:
            self._digests[index] = landing.settle(self._digester, digest)
            self.renew(self.grant.lease_ms / 1000)  # over a slow link the whole transfer may outlast one lease
        else:
            landing.drop()
        self._progress.set()

    def lost(self, index: int) -> None:
        """Called when message `index` is no longer being written and is incomplete."""
        self._writing.pop(index).drop()
        self.fail("peer_lost", "the connection to the prefill node was lost")
        self._progress.set()

    def fail(self, reason: str, message: str) -> None:
        """Fail the transfer. `reason` labels the metric. No effect once it is accepted or has failed."""
        if self.state is TransferState.OPEN:
            self._end(TransferState.FAILED)
            FAILURES.labels(reason).inc()
            self._result.set_exception(TransferError(f"the transfer failed: {message}"))
            self._progress.set()

    async def accept(self, request: transfer_pb2.CommitRequest) -> None:
        """Check a commit and accept it. Raises TransferError if the transfer fails, or had failed before."""
        if len(request.digests) != len(self._plan):
            self.fail("commit", f"its commit has {len(request.digests)} digests for {len(self._plan)} messages")
        elif request.last_block_hash != self._expected_hash:
            self.fail("commit", "prefill and decode node disagree about its tokens (different last block hash)")
        else:
            await self._all_arrived()
            await self._check(request)
        if self._live():  # only now, after copies and digests: the lease must outlast both
            self._end(TransferState.ACCEPTED)
            self._result.set_result(request)
            self._forget(self)
        if self.state is TransferState.FAILED:
            await self._result

    def _watch_lease(self) -> None:
        """Check the lease at its current end. It is usually renewed before, so a renewal need not move the timer."""
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
        """Compare the digests of the received messages with those of the commit."""
        try:
            # shielded: cancelling this call must not cancel the copies into the blocks
            actual = [await asyncio.shield(self._digests[index]) for index in sorted(self._digests)]
        except TransferError as error:
            self.fail("copy", error.message)
            return
        if self.state is TransferState.OPEN and actual != list(request.digests):
            self.fail("digest", "the blocks that arrived are not those that were sent")

    async def _all_arrived(self) -> None:
        """Wait until every message has arrived, or the transfer has failed."""
        while self.state is TransferState.OPEN and len(self._digests) < len(self._plan):
            self._progress.clear()
            try:
                async with asyncio.timeout(_MISSING_S):
                    await self._progress.wait()
            except TimeoutError:
                num_missing = len(self._plan) - len(self._digests)
                self.fail("missing", f"{num_missing} of {len(self._plan)} messages did not arrive")

    async def _quiet(self, patience_s: float | None) -> None:
        """Wait until no message is being written. Raises TimeoutError if none ends for `patience_s`."""
        while self._writing:
            self._progress.clear()
            async with asyncio.timeout(patience_s):
                await self._progress.wait()
