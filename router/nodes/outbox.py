"""The queue of orders for one node. All orders of two turns of the event loop are sent in one message.

While a message is being written, further orders accumulate. If the node does not read, the outbox fills, and no more
legs are started there (`is_full`), as if the node were overloaded. The stream ends (`is_stuck`) if a write takes longer
than STUCK_S, or if the node has not acknowledged a message by then.
"""

import asyncio
import time
from collections import deque

from grpc import aio

from baton.errors import ContextLengthExceeded
from baton.net.registry import NodeRecord
from baton.net.rpc import MAX_MESSAGE_BYTES
from baton.process import tasks
from baton.v1 import node_pb2

MAX_BYTES = 64 * 2**20  # of all prompts that wait to be written
MAX_BATCH_BYTES = 4 * 2**20  # of the prompts in one message, if it holds more than one
MAX_START_BYTES = MAX_MESSAGE_BYTES - 64 * 2**10
STUCK_S = 5.0

_ATTACH = "/baton.v1.Node/Attach"
_Call = aio.StreamStreamCall[bytes, node_pb2.StepBatch]


def attach(channel: aio.Channel, metadata: aio.Metadata) -> _Call:
    """Open a stream to a node. Its requests are sent as they are: the outbox has serialized them."""
    stream: aio.StreamStreamMultiCallable[bytes, node_pb2.StepBatch] = channel.stream_stream(
        _ATTACH, response_deserializer=node_pb2.StepBatch.FromString
    )
    return stream(metadata=metadata)


class Outbox:
    """The orders for one node. It is empty while there is no stream to that node."""

    def __init__(self, router_id: str, epoch: int) -> None:
        """`epoch` is that of the node's incarnation."""
        self._router_id, self._epoch = router_id, epoch
        self._batches: deque[_Batch] = deque()
        self._num_bytes = 0  # of all batches, including the one being written
        self._filled = asyncio.Event()
        self._written = asyncio.Event()  # set while everything is written
        self._written.set()
        self._writing_since_s: float | None = None
        self._unheard: deque[tuple[int, float]] = deque()  # unacknowledged messages: (sequence, time of writing)

    @property
    def is_full(self) -> bool:
        """Whether no more legs should be started on this node."""
        return self._num_bytes >= MAX_BYTES

    @property
    def is_stuck(self) -> bool:
        """Whether the node does not read, or a message was lost on the way."""
        since_s = self._unheard[0][1] if self._unheard else self._writing_since_s
        return since_s is not None and time.monotonic() - since_s > STUCK_S

    def start(self, order: node_pb2.RouterBatch, prefill: NodeRecord | None = None) -> None:
        """Start a leg. `order` has one start; `prefill`, the sender of its KV, is written to it, if there is one.

        Raises ContextLengthExceeded for a huge prompt.
        """
        if prefill is not None:
            start = order.starts[0]
            start.prefill_node_id, start.prefill_epoch = prefill.node_id, prefill.epoch
        serialized = order.SerializeToString()
        num_bytes = len(serialized)
        if num_bytes > MAX_START_BYTES:
            raise ContextLengthExceeded("the request is too large for a message between services")
        if self._batches and self._batches[-1].num_bytes + num_bytes > MAX_BATCH_BYTES:
            self._batches.append(_Batch())
        batch = self._last()
        batch.starts.append(serialized)
        batch.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def grant(self, granted: node_pb2.Granted) -> None:
        """Pass on a decode node's grant."""
        self._last().proto.grants.append(granted)

    def cancel(self, key: int, attempt: int) -> None:
        """Cancel this attempt and older ones."""
        batch = self._last().proto
        batch.cancelled_keys.append(key)
        batch.cancelled_attempts.append(attempt)

    def close(self) -> None:
        """Discard everything: the stream has ended, and with it every leg on the node."""
        self._batches.clear()
        self._num_bytes = 0
        self._filled.clear()
        self._unheard.clear()
        self._written.set()
        self._writing_since_s = None

    def heard(self, num_messages: int) -> None:
        """Note the node's acknowledgement of the first `num_messages` of this stream."""
        while self._unheard and self._unheard[0][0] < num_messages:
            self._unheard.popleft()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is written, or time is up."""
        await tasks.wait(self._written, timeout_s)

    async def write_to(self, call: _Call) -> None:
        """Write the hello, then batches as they come, until the stream ends. Its reader learns why it ended."""
        hello = node_pb2.RouterBatch(router_id=self._router_id, epoch=self._epoch)
        sequence = 0
        try:
            await self._write(call, sequence, hello.SerializeToString())
            while True:
                await self._filled.wait()
                self._filled.clear()
                await asyncio.sleep(0)  # collect one more turn's orders: a message costs a third of a request
                while self._batches:
                    batch = self._batches.popleft()
                    sequence += 1
                    await self._write(call, sequence, batch.serialized(self._epoch, sequence))
                    self._num_bytes -= batch.num_bytes
                self._written.set()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _write(self, call: _Call, sequence: int, message: bytes) -> None:
        self._writing_since_s = time.monotonic()
        await call.write(message)
        self._writing_since_s = None
        self._unheard.append((sequence, time.monotonic()))

    def _last(self) -> "_Batch":
        if not self._batches:
            self._batches.append(_Batch())
            self._filled.set()
            self._written.clear()
        return self._batches[-1]


class _Batch:
    """One message. Its starts are serialized as they come, so that their prompts are not copied into a larger one."""

    def __init__(self) -> None:
        self.proto = node_pb2.RouterBatch()  # everything else
        self.starts: list[bytes] = []  # RouterBatches with one start each
        self.num_bytes = 0  # of its starts

    def serialized(self, epoch: int, sequence: int) -> bytes:
        """Return the message. Concatenating messages of protobuf merges them."""
        self.proto.epoch, self.proto.sequence = epoch, sequence
        return b"".join((self.proto.SerializeToString(), *self.starts))
