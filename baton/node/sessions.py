"""The sessions of a node, one per router.

A router owns its requests: each *leg* (the part of a request that runs on this node) lives in the session of its
router, under its key and attempt. A router that does not read its stream loses its requests, without effect on other
routers. So does one whose stream ends: it has died, or has given the requests up and perhaps could not say so.
Everything here runs in the event loop. What a leg does when it is cancelled is up to its node.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from baton.errors import BatonError, NodeUnavailable, Overloaded
from baton.node.session import Leg, Session
from baton.request import FinishReason, Generation
from baton.v1 import transfer_pb2, types_pb2

GONE_S = 5.0  # how long a session without a stream is kept
BEAT_S = 0.25  # interval of heartbeats
MAX_SESSIONS = 1024

_log = logging.getLogger(__name__)


class Sessions:
    """All sessions of a node. `run` must be running: it sends the heartbeats and removes dead sessions."""

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
        """Return the router's session, creating it if needed: a Prompt.Compute call may come before the Attach stream.

        Raises Overloaded if there are MAX_SESSIONS already.
        """
        session = self._by_router.get(router_id)
        if session is None:
            if len(self._by_router) >= MAX_SESSIONS:
                raise Overloaded("too many routers are connected to this node")
            session = self._by_router[router_id] = Session(router_id, self._clock())
        return session

    @property
    def num_legs(self) -> int:
        """The number of legs of all routers."""
        return sum(len(session.legs) for session in self._by_router.values())

    def open(self, leg: Leg) -> None:
        """Add a leg. Raises NodeUnavailable while the node drains, Cancelled for a stale attempt."""
        if self.draining:
            raise NodeUnavailable("this node is draining and takes no new requests")
        generation = leg.generation
        self.session(generation.router_id).open(leg)
        about = {"request_id": generation.request_id}
        _log.info("%d tokens, attempt %d", len(generation.token_ids), generation.attempt, extra=about)

    def close(self, leg: Leg) -> None:
        """Remove a leg that has ended and reported its outcome. Idempotent."""
        session = self._by_router.get(leg.generation.router_id)
        if session is not None:
            session.close(leg)

    def of(self, leg: Leg) -> Session | None:
        """Return the session if it is still waiting for this leg, else None: then late outputs are dropped."""
        session = self._by_router.get(leg.generation.router_id)
        return session if session is not None and session.holds(leg) else None

    def grant(self, leg: Leg, grant: transfer_pb2.Grant | None) -> None:
        """Tell a leg's router that this node has accepted it. Without a grant its prompt is computed here."""
        if (session := self.of(leg)) is not None:
            session.add_granted(leg.generation, grant)

    def refuse(self, generation: Generation, error: BatonError) -> None:
        """Tell a router that its leg is refused. The leg was never added."""
        self.session(generation.router_id).add_failed(generation.key, generation.attempt, error)

    def fail(self, leg: Leg, error: BatonError) -> None:
        """Report that a leg was refused, or has failed on a prefill node, and close it."""
        if (session := self.of(leg)) is not None:
            session.add_failed(leg.generation.key, leg.generation.attempt, error)
            self.close(leg)

    def finish(self, leg: Leg, num_output_tokens: int, reason: FinishReason, code: str = "", message: str = "") -> None:
        """Send a decode leg's last message and close the leg."""
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
        self.close(leg)

    def flush(self) -> None:
        """Called after a step: send its outputs, and drop routers whose outbox has overflowed."""
        for session in self._by_router.values():
            if session.overflowed:
                self.detach(session)
            elif not session.is_empty:
                session.wake.set()

    def attach(self, router_id: str) -> tuple[Session, object]:
        """Start a new stream for a router; returns its session and a token that identifies the stream.

        An earlier stream ends, and the legs that were started on it are cancelled.
        """
        session = self.session(router_id)
        session.cancel_all()
        session.stream, session.num_heard = object(), 1
        session.beat_due = True
        session.wake.set()
        return session, session.stream

    def lose(self, session: Session, stream: object) -> None:
        """Called when a stream has ended: cancel its legs. No effect if a newer stream has replaced it."""
        if session.stream is stream:
            self.detach(session)

    def detach(self, session: Session) -> None:
        """Drop a router: end its stream, cancel its legs."""
        session.stream, session.gone_since = None, self._clock()
        session.cancel_all()
        session.wake.set()

    def beat(self) -> None:
        """Send a heartbeat on every stream, and drop routers whose outbox has overflowed."""
        for session in self._by_router.values():
            if session.overflowed:
                self.detach(session)
            session.beat_due = True
            session.wake.set()

    async def run(self) -> None:
        """Send heartbeats and remove dead sessions, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.sweep()
            self.beat()

    def sweep(self) -> None:
        """Remove sessions that have had no stream for GONE_S, and cancel the legs left in them."""
        now = self._clock()
        for session in list(self._by_router.values()):
            if session.stream is None and now - session.gone_since > GONE_S:
                del self._by_router[session.router_id]
                session.cancel_all()

    def shut(self) -> None:
        """Make every stream send what is in its outbox, then end."""
        self.closed = True
        self.beat()
