"""A node's routers, and what each of them still has to be told.

A router owns its requests: each *leg* (a request's part on this node) lives in the session of its router, under its key
and attempt. A router that does not read what the session's outbox holds for it loses its requests, and nobody else
notices. So does one whose stream ends: it has died, or has given them up and perhaps could not say so. Everything here
runs in the event loop; what a leg does when it is cancelled is its node's business.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from baton.errors import BatonError, NodeUnavailable, Overloaded
from baton.node.session import Leg, Session
from baton.request import FinishReason, Generation
from baton.v1 import transfer_pb2, types_pb2

GONE_S = 5.0
BEAT_S = 0.25
MAX_SESSIONS = 1024

_log = logging.getLogger(__name__)


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
        """The router's session, made where there is none yet: work on a prompt may come before its router's Attach."""
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

    def grant(self, leg: Leg, grant: transfer_pb2.Grant | None) -> None:
        """Tell a leg's router that it is taken up; without a grant its prompt is computed here."""
        if (session := self.of(leg)) is not None:
            session.add_granted(leg.generation, grant)

    def refuse(self, generation: Generation, error: BatonError) -> None:
        """Tell a router that its leg is not taken up. The leg was never entered."""
        self.session(generation.router_id).add_failed(generation.key, generation.attempt, error)

    def fail(self, leg: Leg, error: BatonError) -> None:
        """The last word on a leg that was not taken up, or that did not end well on a prefill node; closes it."""
        if (session := self.of(leg)) is not None:
            session.add_failed(leg.generation.key, leg.generation.attempt, error)
            self.close(leg)

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
        self.close(leg)

    def flush(self) -> None:
        """A step is over: send what it brought, and drop routers that do not read."""
        for session in self._by_router.values():
            if session.overflowed:
                self.detach(session)
            elif not session.is_empty:
                session.wake.set()

    def attach(self, router_id: str) -> tuple[Session, object]:
        """A new stream for that router, and its token. The one before it ends, and so does what was begun on it."""
        session = self.session(router_id)
        session.cancel_all()
        session.stream, session.num_heard = object(), 1
        session.beat_due = True
        session.wake.set()
        return session, session.stream

    def lose(self, session: Session, stream: object) -> None:
        """That stream has ended, and with it what was begun on it. Nothing where a newer one is there."""
        if session.stream is stream:
            self.detach(session)

    def detach(self, session: Session) -> None:
        """Give a router up: its stream ends, its legs are cancelled."""
        session.stream, session.gone_since = None, self._clock()
        session.cancel_all()
        session.wake.set()

    def beat(self) -> None:
        """Wake every stream, for a heartbeat, and drop routers that do not read."""
        for session in self._by_router.values():
            if session.overflowed:
                self.detach(session)
            session.beat_due = True
            session.wake.set()

    async def run(self) -> None:
        """Heartbeats for ever, and the end of sessions whose router is gone."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.sweep()
            self.beat()

    def sweep(self) -> None:
        """Forget the routers that have had no stream for GONE_S, and what they asked for without one."""
        now = self._clock()
        for session in list(self._by_router.values()):
            if session.stream is None and now - session.gone_since > GONE_S:
                del self._by_router[session.router_id]
                session.cancel_all()

    def shut(self) -> None:
        """Let every stream send what it has and end."""
        self.closed = True
        self.beat()
