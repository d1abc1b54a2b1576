"""One router as a node sees it: its legs, and the outbox of messages to it.

The outbox collects the outputs and outcomes of all legs. The router's Attach stream (`service`) sends them, in one
message per turn of the event loop. The outbox is bounded: `sessions` drops a router whose outbox has overflowed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from baton.errors import BatonError, Cancelled
from baton.request import Generation
from baton.v1 import node_pb2, transfer_pb2, types_pb2

MAX_OUTBOX_ROWS = 65_536  # counting tokens, top log-probabilities, and other messages of legs
_MAX_TOMBSTONES = 16_384  # per router; used to refuse legs that arrive after their own cancel, or twice


class Leg(Protocol):
    """The part of one attempt at a request that runs on this node."""

    @property
    def generation(self) -> Generation:
        """What the router asked for."""

    def cancel(self) -> None:
        """Start to end the leg: its outcome is no longer wanted. Idempotent, returns at once."""


class Session:
    """The legs and the outbox of one router."""

    def __init__(self, router_id: str, now: float) -> None:
        self.router_id = router_id
        self.legs: dict[int, Leg] = {}  # by key
        self.wake = asyncio.Event()  # set when there is something to send, or the stream is to end
        self.beat_due = True  # whether the next message must carry the load
        self.stream: object | None = None  # token of the current Attach call; None while there is none
        self.num_heard = 0  # messages received on the current stream
        self.gone_since = now  # when the last stream ended; meaningful while there is none
        self._tombstones: OrderedDict[int, int] = OrderedDict()  # key -> newest attempt that has ended
        self._batch, self._num_rows = node_pb2.StepBatch(), 0

    @property
    def is_empty(self) -> bool:
        """Whether the outbox is empty."""
        return self._num_rows == 0

    @property
    def overflowed(self) -> bool:
        """Whether the outbox holds more than MAX_OUTBOX_ROWS, because the router does not read its stream."""
        return self._num_rows > MAX_OUTBOX_ROWS

    def take(self) -> node_pb2.StepBatch:
        """Empty the outbox and return its contents."""
        batch, self._batch, self._num_rows = self._batch, node_pb2.StepBatch(), 0
        self.beat_due = False
        self.wake.clear()
        return batch

    def open(self, leg: Leg) -> None:
        """Add a leg; an older attempt under the same key is cancelled. Raises Cancelled for a stale attempt."""
        key, attempt = leg.generation.key, leg.generation.attempt
        if self._tombstones.get(key, -1) >= attempt:
            raise Cancelled("this attempt was cancelled or has ended")
        if (old := self.legs.get(key)) is not None:
            if old.generation.attempt >= attempt:
                raise Cancelled("this attempt, or a newer one, is already running here")
            old.cancel()
        self.legs[key] = leg

    def cancel(self, key: int, attempt: int) -> None:
        """Cancel this attempt and older ones, including those that have not arrived yet."""
        self._bury(key, attempt)
        leg = self.legs.get(key)
        if leg is not None and leg.generation.attempt <= attempt:
            del self.legs[key]
            leg.cancel()

    def close(self, leg: Leg) -> None:
        """Remove a leg that has ended. A duplicate of the same attempt that arrives later will be refused."""
        if self.holds(leg):
            del self.legs[leg.generation.key]
            self._bury(leg.generation.key, leg.generation.attempt)

    def cancel_all(self) -> None:
        """Cancel every leg, and discard the contents of the outbox."""
        legs, self.legs = list(self.legs.values()), {}
        self._batch, self._num_rows = node_pb2.StepBatch(), 0
        for leg in legs:
            self._bury(leg.generation.key, leg.generation.attempt)
            leg.cancel()

    def leg(self, key: int, attempt: int) -> Leg | None:
        """Return the leg of this attempt, or None if it is not here or has ended."""
        leg = self.legs.get(key)
        return leg if leg is not None and leg.generation.attempt == attempt else None

    def holds(self, leg: Leg) -> bool:
        """Whether the router is still waiting for this leg."""
        return self.legs.get(leg.generation.key) is leg

    def add_tokens(
        self, keys: Sequence[int], attempts: Sequence[int], indices: Sequence[int], token_ids: Sequence[int]
    ) -> None:
        """Add output tokens, as columns of equal length. `indices` are output positions."""
        batch = self._batch
        batch.keys.extend(keys)
        batch.attempts.extend(attempts)
        batch.indices.extend(indices)
        batch.token_ids.extend(token_ids)
        self._num_rows += len(keys)

    def add_logprobs(self, logprobs: types_pb2.TokenLogprobs) -> None:
        """Add log-probabilities of a token that is added in the same step."""
        self._batch.logprobs.append(logprobs)
        self._num_rows += 1 + len(logprobs.top_token_ids)

    def add_started(self, started: types_pb2.Started) -> None:
        """Report that a leg's first step has completed."""
        self._batch.started.append(started)
        self._num_rows += 1

    def add_finished(self, finished: types_pb2.Finished) -> None:
        """Add a decode leg's last message."""
        self._batch.finished.append(finished)
        self._count_and_wake()

    def add_granted(self, generation: Generation, grant: transfer_pb2.Grant | None) -> None:
        """Report that a decode node has accepted a leg. Without a grant the node computes the prompt itself."""
        self._batch.granted.add(key=generation.key, attempt=generation.attempt, grant=grant)
        self._count_and_wake()

    def add_first_token(self, first: types_pb2.FirstToken) -> None:
        """Add the first token of a leg, sampled by a prefill node."""
        self._batch.first_tokens.append(first)
        self._count_and_wake()

    def add_transferred(self, transferred: node_pb2.Transferred) -> None:
        """Add a prefill leg's last message: its KV blocks were accepted."""
        self._batch.transferred.append(transferred)
        self._count_and_wake()

    def add_failed(self, key: int, attempt: int, error: BatonError) -> None:
        """Add the last message of a leg that was refused or has failed."""
        code, param = error.code or "", error.param or ""
        self._batch.failed.add(key=key, attempt=attempt, code=code, message=error.message, param=param)
        self._count_and_wake()

    def _count_and_wake(self) -> None:
        self._num_rows += 1
        self.wake.set()

    def _bury(self, key: int, attempt: int) -> None:
        self._tombstones[key] = max(attempt, self._tombstones.pop(key, -1))
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
