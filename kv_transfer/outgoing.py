"""One outgoing transfer: the prefill node's side of sending a request's KV blocks.

1. `KVSender.open` pairs a grant with the request's blocks and computes the plan of messages.
2. `ready` reports which blocks are computed. The outbox takes a message once all of its blocks are.
3. `commit` waits until every message is sent, then asks the decode node to accept the transfer.
4. The blocks may be reused once `commit` has returned, or after a failure once `abort` has.
"""

import asyncio
import time
from collections import deque
from typing import NamedTuple

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from kv_transfer.digest import Digester, known
from kv_transfer.faults import FAULTS
from kv_transfer.metrics import BYTES, FAILURES, SECONDS
from kv_transfer.peer import DecodePeer
from kv_transfer.plan import messages
from kv_transfer.pool import Loan, Pool, places_of
from kv_transfer.transport import AnyConnection, BlockConnection, ByteConnection, Peer

_ABORT_GRACE_S = 1.0  # how long an abort waits for a message in flight before it closes the peer's connection


class TransferStats(NamedTuple):
    """The size and cost of an accepted transfer."""

    num_bytes: int
    num_blocks: int
    tail_s: float  # from the call of `commit` to its acceptance: the time that disaggregation adds to the prefill
    transport: str


class OutgoingTransfer:
    """One transfer, created by `KVSender.open`. All methods run in the event loop."""

    def __init__(
        self, grant: transfer_pb2.Grant, block_ids: list[int], pool: Pool, peer: DecodePeer, digester: Digester,
        incarnation: Peer,
    ) -> None:  # fmt: skip
        missing = grant.num_missing_blocks
        if grant.num_present_blocks + missing != len(block_ids):
            raise TransferError(
                f"a grant of {grant.num_present_blocks} present and {missing} missing blocks "
                f"does not fit a request of {len(block_ids)} blocks"
            )
        self._grant = grant
        self._pool = pool
        self._peer = peer
        self._digester = digester
        self._incarnation = incarnation
        self._missing = block_ids[grant.num_present_blocks :]
        self._plan = messages(pool.layout, missing, grant.max_message_bytes)
        self._queued: dict[range, deque[int]] = {message.layer_groups: deque() for message in self._plan}
        for index, message in enumerate(self._plan):
            self._queued[message.layer_groups].append(index)
        self._num_ready = [0] * pool.layout.num_layer_groups  # how many of the missing blocks are computed
        self._loans: dict[int, Loan] = {}  # by index of the message in flight
        self._digests: dict[int, asyncio.Future[int]] = {}
        self._num_sent = 0
        self._progress = asyncio.Event()  # set when a message has been sent, and when the transfer fails
        self.began_s = 0.0  # monotonic time at which the first message was taken; 0 before
        self.error: TransferError | None = None  # why the transfer has failed

    def ready(self, layer_group: int, num_blocks: int) -> None:
        """Declare that the request's blocks [0, num_blocks) of this layer group are computed and will not change."""
        num_missing = num_blocks - self._grant.num_present_blocks
        if num_missing > self._num_ready[layer_group]:
            self._num_ready[layer_group] = min(num_missing, len(self._missing))
            self._enqueue()

    async def commit(
        self, num_tokens: int, last_block_hash: bytes, first_token: int, timeout_s: float
    ) -> TransferStats:
        """Send the commit. Returns when the decode node has accepted the blocks; they are no longer read then.

        Every block must be `ready`. Raises TransferError if the decode node does not accept them within `timeout_s`;
        call `abort` then.
        """
        started_s = time.monotonic()
        request = transfer_pb2.CommitRequest(
            node_id=self._incarnation.node_id,
            epoch=self._incarnation.epoch,
            grant_id=self._grant.grant_id,
            decode_epoch=self._grant.decode_epoch,
            num_tokens=num_tokens,
            last_block_hash=last_block_hash,
            first_token=first_token,
        )
        try:
            async with asyncio.timeout(timeout_s):
                await self._peer.connected()
                await self._all_sent()
                FAULTS.strike("crash_before_commit")
                await FAULTS.hold("hold_commit", lambda: self.error is not None)
                # shielded: after a timeout the blocks are still being read until their digests are there
                request.digests.extend([await asyncio.shield(self._digests[i]) for i in range(len(self._plan))])
                await self._peer.commit(request, timeout_s - (time.monotonic() - started_s))
        except TimeoutError:
            raise self._failed(TransferError(f"the transfer was not accepted within {timeout_s:.1f} s")) from None
        except TransferError as error:
            raise self._failed(error) from None
        self._peer.leave(self)
        return self._stats(time.monotonic() - started_s)

    async def abort(self) -> None:
        """Fail the transfer. Idempotent. Returns when its blocks are no longer read; only then may they be reused.

        Messages in flight are sent whole, so that the connection stays usable for other transfers. The connection is
        closed only if no message ends within _ABORT_GRACE_S.
        """
        self._fail(TransferError("the transfer was aborted"))
        try:
            await self._idle(_ABORT_GRACE_S)
        except TimeoutError:
            await self._peer.close_connection()
            await self._idle(None)
        await asyncio.gather(*self._digests.values(), return_exceptions=True)
        self._peer.leave(self)

    def take(self) -> tuple[int, int, int] | None:
        """See `outbox.Source`. A message is ready when all of its blocks are and the pool has room to stage it."""
        if self.error:
            return None
        for layer_groups, queue in self._queued.items():
            if not queue:
                continue
            message = self._plan[queue[0]]
            if message.first + message.num_blocks <= min(self._num_ready[group] for group in layer_groups):
                return self._begin(queue)
        return None

    async def send(self, index: int, tag: int, connection: AnyConnection) -> int | None:
        """See `outbox.Source`. The message is digested while it is sent, by the connection or by this node."""
        if isinstance(connection, BlockConnection):
            await self._send_blocks(index, tag, connection)
            return None
        return await self._send_bytes(index, tag, connection)

    def sent(self, index: int, error: TransferError | None, digest: int | None) -> None:
        """See `outbox.Source`. The blocks stay lent until a digest still being computed is done."""
        loan, own = self._loans.pop(index), self._digests.get(index)
        if own is None:
            loan.end()
            if digest is not None:
                self._digests[index] = known(digest)
        else:
            own.add_done_callback(lambda _: loan.end())
        self._num_sent += error is None
        if error:
            self._fail(error)
        self._progress.set()
        FAULTS.strike("crash_mid_transfer", "freeze_mid_transfer")

    def peer_ended(self, error: TransferError) -> None:
        """See `peer.Dependent`."""
        self._fail(error)

    def _begin(self, queue: deque[int]) -> tuple[int, int, int] | None:
        self.began_s = self.began_s or time.monotonic()
        loan = self._pool.lend(self._plan[queue[0]].layer_groups, self._block_ids(queue[0]))
        if loan is None:
            self._pool.when_room(self._enqueue)
            return None
        index = queue.popleft()
        self._loans[index] = loan
        return index, self._grant.tag_base + index, loan.num_bytes

    def _block_ids(self, index: int) -> list[int]:
        message = self._plan[index]
        return self._missing[message.first : message.first + message.num_blocks]

    async def _send_blocks(self, index: int, tag: int, connection: BlockConnection) -> None:
        places = places_of(self._pool, self._plan[index].layer_groups, self._block_ids(index))
        self._digests[index] = asyncio.ensure_future(connection.digest(places))
        if FAULTS.fires("corrupt_message"):
            places = FAULTS.misplace(places, self._pool.num_blocks)
        await self._hold_message()
        await connection.send(tag, places)

    async def _send_bytes(self, index: int, tag: int, connection: ByteConnection) -> int | None:
        views = await self._loans[index].views()
        is_damaged = FAULTS.fires("corrupt_message")
        if is_damaged or not connection.digests:
            self._digests[index] = self._digester.start(views)
        if is_damaged:
            views = FAULTS.flip(views)
        await self._hold_message()
        return await connection.send(tag, views)

    async def _hold_message(self) -> None:
        await FAULTS.hold("hold_message", lambda: self.error is not None)

    def _enqueue(self) -> None:
        if self.error is None:
            self._peer.outbox.add(self)

    def _fail(self, error: TransferError) -> None:
        if self.error is None:
            self.error = error
            self._peer.outbox.discard(self)
            self._progress.set()

    def _failed(self, error: TransferError) -> TransferError:
        FAILURES.labels("send").inc()
        self._fail(error)
        return self.error or error

    async def _all_sent(self) -> None:
        while self._num_sent < len(self._plan):
            if self.error:
                raise self.error
            await self._next_progress()

    async def _idle(self, patience_s: float | None) -> None:
        """Wait until no message is in flight. Raises TimeoutError if none ends for `patience_s`."""
        while self._loans:
            async with asyncio.timeout(patience_s):
                await self._next_progress()

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _stats(self, tail_s: float) -> TransferStats:
        num_bytes = len(self._missing) * self._pool.layout.block_bytes
        BYTES.labels(self._peer.transport).inc(num_bytes)
        SECONDS.observe(tail_s)
        return TransferStats(num_bytes, len(self._missing), tail_s, self._peer.transport)
