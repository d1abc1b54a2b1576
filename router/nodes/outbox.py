"""What this router has to tell one node: all that comes up in two turns of the event loop leaves in one message.

While a message is being written the next ones gather. A node that does not read fills the outbox: then nothing more is
begun there (`is_full`), as on a node that is overloaded. A write that gets nowhere for STUCK_S ends the stream, and so
does a message that the node has not heard of by then.
"""

import asyncio
import contextlib
import time
from collections import deque

from grpc import aio

from baton.net.registry import NodeRecord
from baton.net.rpc import MAX_MESSAGE_BYTES
from baton.v1 import node_pb2, types_pb2

MAX_BYTES = 64 * 2**20  # of prompts that wait to be written
MAX_BATCH_BYTES = 4 * 2**20  # of a message that holds more than one prompt
MAX_START_BYTES = MAX_MESSAGE_BYTES - 64 * 2**10
STUCK_S = 5.0

_Call = aio.StreamStreamCall[node_pb2.RouterBatch, node_pb2.StepBatch]


class Outbox:
    """What one node is still to be told. It is empty while there is no stream to that node."""

    def __init__(self, router_id: str, epoch: int) -> None:
        """`epoch` is the incarnation that is spoken to."""
        self._router_id, self._epoch = router_id, epoch
        self._batches: deque[_Batch] = deque()
        self._num_bytes = 0  # of all of them, and of the one that is being written
        self._filled = asyncio.Event()
        self._written = asyncio.Event()  # all of it is
        self._written.set()
        self._writing_since_s: float | None = None
        self._unheard: deque[tuple[int, float]] = deque()  # number of each message, and when it was written

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be begun on this node."""
        return self._num_bytes >= MAX_BYTES

    @property
    def is_stuck(self) -> bool:
        """Whether the node does not read, or something on the way has lost a message."""
        since_s = self._unheard[0][1] if self._unheard else self._writing_since_s
        return since_s is not None and time.monotonic() - since_s > STUCK_S

    def start(self, generation: types_pb2.Generation, num_bytes: int, prefill: NodeRecord | None = None) -> None:
        """Begin a leg, which takes so many bytes on the wire; MAX_START_BYTES at most. `prefill` ships to it."""
        if self._batches and self._batches[-1].num_bytes + num_bytes > MAX_BATCH_BYTES:
            self._batches.append(_Batch())
        batch = self._last()
        start = batch.proto.starts.add(generation=generation)
        if prefill is not None:
            start.prefill_node_id, start.prefill_epoch = prefill.node_id, prefill.epoch
        batch.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def grant(self, granted: node_pb2.Granted) -> None:
        """Hand a decode node's grant on."""
        self._last().proto.grants.append(granted)

    def cancel(self, key: int, attempt: int) -> None:
        """Have the node drop this attempt and older ones."""
        batch = self._last().proto
        batch.cancelled_keys.append(key)
        batch.cancelled_attempts.append(attempt)

    def close(self) -> None:
        """The stream has ended: with it ends what was begun on it, so nothing of this need be said."""
        self._batches.clear()
        self._num_bytes = 0
        self._filled.clear()
        self._unheard.clear()
        self._written.set()
        self._writing_since_s = None

    def heard(self, num_messages: int) -> None:
        """So many messages of this stream the node has taken."""
        while self._unheard and self._unheard[0][0] < num_messages:
            self._unheard.popleft()

    async def drain(self, timeout_s: float) -> None:
        """Return when all of it is written, or time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._written.wait()

    async def write_to(self, call: _Call) -> None:
        """Say who speaks, then whatever comes up, until the stream ends; its reader learns why."""
        hello = node_pb2.RouterBatch(router_id=self._router_id, epoch=self._epoch)
        sequence = 1
        try:
            await self._write(call, hello)
            while True:
                await self._filled.wait()
                self._filled.clear()
                await asyncio.sleep(0)  # who comes by now goes along: a message costs as much as a third of a request
                while self._batches:
                    batch = self._batches.popleft()
                    batch.proto.epoch, batch.proto.sequence = self._epoch, sequence
                    sequence += 1
                    await self._write(call, batch.proto)
                    self._num_bytes -= batch.num_bytes
                self._written.set()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _write(self, call: _Call, batch: node_pb2.RouterBatch) -> None:
        self._writing_since_s = time.monotonic()
        await call.write(batch)
        self._writing_since_s = None
        self._unheard.append((batch.sequence, time.monotonic()))

    def _last(self) -> "_Batch":
        if not self._batches:
            self._batches.append(_Batch())
            self._filled.set()
            self._written.clear()
        return self._batches[-1]


class _Batch:
    def __init__(self) -> None:
        self.proto = node_pb2.RouterBatch()
        self.num_bytes = 0  # of its starts
