"""A node's routers, and what each of them still has to be told.

A router owns its requests: each *leg* (a request's part on this node) lives in the session of its router, under its key
and attempt. Whatever a leg has to say goes into the session's outbox, which the router's Attach stream (node_service)
empties, one message per step. The outbox is bounded: a router that does not read loses its requests, and nobody else
notices. A router whose stream has been gone for GONE_S loses its requests as well. Everything here runs in the event
loop; what a leg does when it is cancelled is its node's business.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from baton.errors import Cancelled, NodeUnavailable, Overloaded
from baton.request import FinishReason, Generation
from baton.v1 import node_pb2, types_pb2

GONE_S = 5.0
BEAT_S = 0.25
MAX_OUTBOX_ROWS = 65_536  # tokens, and alternatives among log-probabilities
MAX_SESSIONS = 1024
_MAX_TOMBSTONES = 16_384  # per router: legs that arrive after their own cancel, or a second time, are refused

_log = logging.getLogger(__name__)


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
        self.stream: object | None = None  # the Attach call that empties the outbox
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
        self._num_rows += 1

    def _bury(self, key: int, attempt: int) -> None:
        self._tombstones[key] = max(attempt, self._tombstones.pop(key, -1))
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)


class Sessions:
    """All routers of a node. `run` must be running: it beats, and sweeps."""

    def __init__(
        self, epoch: int, load: Callable[[], types_pb2.Load], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.epoch = epoch
        self.load = load
        self.draining = False
        self.closed = False
        self._clock = clock
        self._by_router: dict[str, Session] = {}

    def session(self, router_id: str) -> Session:
        """The router's session, made where there is none yet: a request may come before its router's Attach."""
        found = self._by_router.get(router_id)
        if found is None:
            if len(self._by_router) >= MAX_SESSIONS:
                raise Overloaded("too many routers")
            found = self._by_router[router_id] = Session(router_id, self._clock())
        return found

    @property
    def num_legs(self) -> int:
        """Legs of all routers."""
        return sum(len(session.legs) for session in self._by_router.values())

    def open(self, leg: Leg) -> None:
        """Enter a leg. Raises NodeUnavailable while the node drains, Cancelled for a stale attempt."""
        if self.draining:
            raise NodeUnavailable("this node takes no new requests")
        generation = leg.generation
        self.session(generation.router_id).open(leg)
        about = {"request_id": generation.request_id}
        _log.info("%d tokens, attempt %d", len(generation.token_ids), generation.attempt, extra=about)

    def close(self, leg: Leg) -> None:
        """The leg is over and has told its router what it had to tell. Idempotent."""
        session = self._by_router.get(leg.generation.router_id)
        if session is not None:
            session.close(leg)

    def of(self, leg: Leg) -> Session | None:
        """The session that still waits for this leg, if any does: late outputs of other legs are dropped."""
        session = self._by_router.get(leg.generation.router_id)
        return session if session is not None and session.holds(leg) else None

    def cancel(self, router_id: str, key: int, attempt: int) -> None:
        """A router's word that it gave up this attempt. Idempotent; unknown requests are no error."""
        self.session(router_id).cancel(key, attempt)

    def finish(self, leg: Leg, num_output_tokens: int, reason: FinishReason, code: str = "", message: str = "") -> None:
        """The leg's last word to its router; closes it. Goes out with the next flush."""
        session = self.of(leg)
        if session is None:
            return
        generation = leg.generation
        session.add_finished(
            types_pb2.Finished(
                key=generation.key,
                attempt=generation.attempt,
                num_output_tokens=num_output_tokens,
                reason=reason.value,
                error_code=code,
                error_message=message,
            )
        )
        session.wake.set()
        self.close(leg)

    def flush(self) -> None:
        """A step is over: send what it brought, and drop routers that do not read."""
        for session in self._by_router.values():
            if session.overflowed:
                self.detach(session)
            elif not session.is_empty:
                session.wake.set()

    def attach(self, router_id: str) -> tuple[Session, object]:
        """A new stream for that router, and its token: the one before it ends."""
        session = self.session(router_id)
        session.stream = object()
        session.beat_due = True
        session.wake.set()
        return session, session.stream

    def lose(self, session: Session, stream: object) -> None:
        """That stream has ended; the router has GONE_S to attach anew. Nothing where a newer one is there."""
        if session.stream is stream:
            session.stream, session.gone_since = None, self._clock()

    def detach(self, session: Session) -> None:
        """Give a router up: its stream ends, its legs are cancelled."""
        session.stream, session.gone_since = None, self._clock()
        session.cancel_all()
        session.wake.set()

    def beat(self) -> None:
        """Wake every stream, for a heartbeat."""
        for session in self._by_router.values():
            session.beat_due = True
            session.wake.set()

    async def run(self) -> None:
        """Heartbeats for ever, and the end of sessions whose router is gone."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.sweep()
            self.beat()

    def sweep(self) -> None:
        """Forget the routers whose stream has been gone for GONE_S, and cancel their legs."""
        now = self._clock()
        for session in list(self._by_router.values()):
            if session.stream is None and now - session.gone_since > GONE_S:
                del self._by_router[session.router_id]
                session.cancel_all()

    def shut(self) -> None:
        """Let every stream send what it has and end."""
        self.closed = True
        self.beat()
