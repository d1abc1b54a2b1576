"""One router as a node sees it: its legs, and what it still has to be told.

Whatever a leg has to say goes into the outbox, which the router's Attach stream (`service`) empties, in one
message per turn of the event loop. The outbox is bounded; `sessions` looks after that.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from baton.errors import BatonError, Cancelled
from baton.request import Generation
from baton.v1 import node_pb2, transfer_pb2, types_pb2

MAX_OUTBOX_ROWS = 65_536  # tokens, alternatives among log-probabilities, and whatever else legs say
_MAX_TOMBSTONES = 16_384  # per router: legs that arrive after their own cancel, or a second time, are refused


class Leg(Protocol):
    """A request's part on this node."""

    @property
    def generation(self) -> Generation:
        """What the router asked for."""

    def cancel(self) -> None:
        """Begin to end: nobody wants the outcome any more. Idempotent, returns at once."""


class Session:
    """One router: its legs, and its outbox."""

    def __init__(self, router_id: str, now: float) -> None:
        self.router_id = router_id
        self.legs: dict[int, Leg] = {}  # by key
        self.wake = asyncio.Event()  # something is in the outbox, or the stream is to end
        self.beat_due = True  # the next message carries the load
        self.stream: object | None = None  # the Attach call that empties the outbox, and fills `legs`
        self.num_heard = 0  # messages taken on this stream
        self.gone_since = now  # meaningful while there is no stream
        self._tombstones: OrderedDict[int, int] = OrderedDict()  # key -> newest attempt that is over
        self._batch, self._num_rows = node_pb2.StepBatch(), 0

    @property
    def is_empty(self) -> bool:
        """Whether the outbox is."""
        return self._num_rows == 0

    @property
    def overflowed(self) -> bool:
        """Whether the router has left more unread than this node keeps."""
        return self._num_rows > MAX_OUTBOX_ROWS

    def take(self) -> node_pb2.StepBatch:
        """All that is in the outbox, which is empty afterwards."""
        batch, self._batch, self._num_rows = self._batch, node_pb2.StepBatch(), 0
        self.beat_due = False
        self.wake.clear()
        return batch

    def open(self, leg: Leg) -> None:
        """Enter a leg; an older attempt under the same key is cancelled. Raises Cancelled for a stale attempt."""
        key, attempt = leg.generation.key, leg.generation.attempt
        if self._tombstones.get(key, -1) >= attempt:
            raise Cancelled("cancelled by its router, or over")
        if (old := self.legs.get(key)) is not None:
            if old.generation.attempt >= attempt:
                raise Cancelled("a newer attempt, or the same, is already here")
            old.cancel()
        self.legs[key] = leg

    def cancel(self, key: int, attempt: int) -> None:
        """Cancel that attempt and older ones, whether they are here already or still to come."""
        self._bury(key, attempt)
        leg = self.legs.get(key)
        if leg is not None and leg.generation.attempt <= attempt:
            del self.legs[key]
            leg.cancel()

    def close(self, leg: Leg) -> None:
        """The leg is over. Whatever still asks for the same attempt, a copy that the network made, is refused."""
        if self.holds(leg):
            del self.legs[leg.generation.key]
            self._bury(leg.generation.key, leg.generation.attempt)

    def cancel_all(self) -> None:
        """Cancel every leg, and forget what the outbox holds."""
        legs, self.legs = list(self.legs.values()), {}
        self._batch, self._num_rows = node_pb2.StepBatch(), 0
        for leg in legs:
            self._bury(leg.generation.key, leg.generation.attempt)
            leg.cancel()

    def leg(self, key: int, attempt: int) -> Leg | None:
        """None where that attempt is not here, or over."""
        leg = self.legs.get(key)
        return leg if leg is not None and leg.generation.attempt == attempt else None

    def holds(self, leg: Leg) -> bool:
        """Whether the router still waits for this leg."""
        return self.legs.get(leg.generation.key) is leg

    def add_tokens(
        self, keys: Sequence[int], attempts: Sequence[int], indices: Sequence[int], token_ids: Sequence[int]
    ) -> None:
        """Rows: of the request with that key, in that attempt, the token at that output position."""
        batch = self._batch
        batch.keys.extend(keys)
        batch.attempts.extend(attempts)
        batch.indices.extend(indices)
        batch.token_ids.extend(token_ids)
        self._num_rows += len(keys)

    def add_logprobs(self, logprobs: types_pb2.TokenLogprobs) -> None:
        """Log-probabilities of a token that was or will be added in the same step."""
        self._batch.logprobs.append(logprobs)
        self._num_rows += 1 + len(logprobs.top_token_ids)

    def add_started(self, started: types_pb2.Started) -> None:
        """A leg's first step is over."""
        self._batch.started.append(started)
        self._num_rows += 1

    def add_finished(self, finished: types_pb2.Finished) -> None:
        """A leg's last message."""
        self._batch.finished.append(finished)
        self._count_and_wake()

    def add_granted(self, generation: Generation, grant: transfer_pb2.Grant | None) -> None:
        """A leg is taken up."""
        self._batch.granted.add(key=generation.key, attempt=generation.attempt, grant=grant)
        self._count_and_wake()

    def add_first_token(self, first: types_pb2.FirstToken) -> None:
        """The first token of a leg, which a prefill node drew."""
        self._batch.first_tokens.append(first)
        self._count_and_wake()

    def add_transferred(self, transferred: node_pb2.Transferred) -> None:
        """A prefill leg's last message."""
        self._batch.transferred.append(transferred)
        self._count_and_wake()

    def add_failed(self, key: int, attempt: int, error: BatonError) -> None:
        """The last message of a leg that is not taken up, or that fails."""
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
