"""One node as seen by this router: a channel, the Attach stream on it, and the legs that depend on the node.

Orders go out in batches (`outbox`); step batches come in, and each leg gets its part. The node is lost after a long
silence (`silence`), at the end of the stream, a missing message, one that the node does not read, or one of another
incarnation. All its legs then fail, and the link attaches again, at which the node cancels what it had. After a shorter
silence, if most of its pool is not silent, a node is *suspected*: its legs fail, and it gets no new ones until it
speaks again, but the stream stays open. One that makes no steps gets no new ones either.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from grpc import aio

from baton.errors import NodeUnavailable, Overloaded
from baton.net import rpc
from baton.net.registry import NodeRecord
from baton.net.tls import Identity
from baton.process import tasks
from baton.v1 import node_pb2, prompt_pb2_grpc, trace_pb2_grpc, types_pb2
from router.nodes.fleet_costs import FleetCosts
from router.nodes.leg import Leg
from router.nodes.outbox import Outbox, attach
from router.nodes.silence import TICK_S, Silence
from router.nodes.state import NodeState
from router.nodes.step_batch import tell_legs

STUCK_S = 30.0  # without a step although requests are running; on a slow machine one long chunk takes seconds
AVOID_S = 1.0
MAX_BACKOFF_S = 1.0
_CLOSE_S = 0.5

_STATE_NAMES = {types_pb2.NODE_STATE_STARTING: "starting", types_pb2.NODE_STATE_DRAINING: "draining"}
STATES = ("ready", "starting", "draining", "stuck", "lost")  # lost: it sent its load once, but is silent now

_log = logging.getLogger(__name__)


class NodeLink:
    """The link to one incarnation of a node. The fleet view opens and closes it."""

    def __init__(
        self,
        record: NodeRecord,
        router_id: str,
        service_token: str,
        on_change: Callable[[], None],
        costs: FleetCosts,
        tls: Identity | None,
        may_suspect: Callable[["NodeLink"], bool],
    ) -> None:
        """`on_change` is called after each change; `may_suspect` tells whether a silence is the node's own fault."""
        self.record = record
        self.alive = False
        self.stuck = False
        self.suspected = False
        self.load = types_pb2.Load()
        self.state = NodeState()
        self.legs: dict[int, Leg] = {}
        self._outbox = Outbox(router_id, record.epoch)
        self._on_change = on_change
        self._costs = costs
        self._may_suspect = may_suspect
        self.metadata = rpc.metadata(service_token)  # for every call
        self._channel = rpc.channel(record.address, tls)
        self.prompt = prompt_pb2_grpc.PromptStub(self._channel)
        self.trace = trace_pb2_grpc.TraceStub(self._channel)
        self._next_sequence = 0
        self._silence = Silence()
        self._stepped_at = time.monotonic()
        self._avoid_until = float("-inf")
        self._reason = ""  # why the last stream ended, or did not begin
        self._task: asyncio.Task[None] | None = None

    @property
    def accepting(self) -> bool:
        """Whether the node can take a new request now."""
        return self.serves and time.monotonic() >= self._avoid_until and not self._outbox.is_full

    @property
    def serves(self) -> bool:
        """Whether the node takes requests in general, even if it is full at this moment."""
        return self.alive and not (self.stuck or self.suspected) and self.load.state not in _STATE_NAMES

    @property
    def health(self) -> str:
        """The node's state as this router sees it, one of STATES."""
        if self.suspected or not self.alive:
            return "lost" if self.load.num_blocks else "starting"
        return "stuck" if self.stuck else _STATE_NAMES.get(self.load.state, "ready")

    @property
    def speaks(self) -> bool:
        """Whether the node is alive and has sent a message recently."""
        return self.alive and self._silence.is_short

    @property
    def draining(self) -> bool:
        """Whether the node is draining, and so leaves on purpose."""
        return self.load.state == types_pb2.NODE_STATE_DRAINING

    def open(self) -> None:
        """Attach, and stay attached until `close`."""
        self._task = asyncio.create_task(self._stay_attached())

    async def close(self) -> None:
        """Send what is queued, then close the stream and the channel. Legs still attached fail."""
        await self._outbox.drain(_CLOSE_S)
        if self._task is not None:
            await tasks.end(self._task)
        self._down("dropped")
        await self._channel.close()

    def avoid(self) -> None:
        """Send the node no new requests for AVOID_S: it has refused one."""
        self._avoid_until = time.monotonic() + AVOID_S

    def attach(self, leg: Leg) -> None:
        """Deliver the node's messages and its loss to this leg from now on. Raises NodeUnavailable if it is lost."""
        if not self.alive:
            raise NodeUnavailable("the node is gone")
        self.legs[leg.key] = leg

    def detach(self, leg: Leg) -> None:
        """Deliver nothing more to this leg. Idempotent."""
        if self.legs.get(leg.key) is leg:
            del self.legs[leg.key]

    def start(self, leg: Leg, order: node_pb2.RouterBatch, prefill: NodeRecord | None = None) -> None:
        """Start a leg on the node; detach it in any case. For `order` and `prefill` see `Outbox.start`.

        Raises NodeUnavailable if it is lost, Overloaded if its outbox is full, ContextLengthExceeded for a huge prompt.
        """
        if self._outbox.is_full:
            raise Overloaded("too much is queued for the node")
        self.attach(leg)
        self._outbox.start(order, prefill)

    def grant(self, granted: node_pb2.Granted) -> None:
        """Pass a decode node's grant on to this prefill node."""
        if self.alive:
            self._outbox.grant(granted)

    def cancel(self, leg: Leg) -> None:
        """Cancel the leg's attempt on the node. If the node is lost, the next stream cancels everything anyway."""
        if self.alive:
            self._outbox.cancel(leg.key, leg.attempt)

    def on_batch(self, batch: node_pb2.StepBatch) -> None:
        """Process a message. Raises NodeUnavailable if one before it is missing, or for another incarnation's."""
        if batch.epoch != self.record.epoch:
            raise NodeUnavailable("another incarnation of the node answers at its address")
        if batch.sequence != self._next_sequence:
            if batch.sequence < self._next_sequence:
                return
            raise NodeUnavailable("a message is missing")
        self._next_sequence += 1
        self._silence.end()
        self.suspected = False
        if self.legs:
            tell_legs(batch, self.legs, self)
        if batch.HasField("load"):
            self._outbox.heard(batch.num_heard)
            self._on_load(batch.load)

    def _on_load(self, load: types_pb2.Load) -> None:
        now = time.monotonic()
        if load.num_steps != self.load.num_steps or not load.num_running:
            self._stepped_at = now
        self.load = load
        self._costs.take_load(load)
        self.state.take_load(load, self._costs.pooled, now)
        self.alive = True
        was_stuck, self.stuck = self.stuck, now - self._stepped_at > STUCK_S
        if self.stuck and not was_stuck:
            _log.warning("node %s has made no step for %.0f s", self.record.node_id, STUCK_S)
            self._fail_legs()
        self._on_change()

    async def _stay_attached(self) -> None:
        backoff_s = 0.1
        while True:
            why = "the stream ended"
            try:
                await self._read_stream()
            except aio.AioRpcError as error:
                why = error.code().name
            except NodeUnavailable as error:
                why = error.message
            except Exception:
                _log.exception("cannot read the stream of node %s", self.record.node_id)
                why = "unreadable"
            backoff_s = 0.1 if self.alive else min(2 * backoff_s, MAX_BACKOFF_S)
            self._down(why)
            await asyncio.sleep(backoff_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def _read_stream(self) -> None:
        self._next_sequence = 0
        self._silence.begin()
        call = attach(self._channel, self.metadata)
        beside = [asyncio.create_task(self._outbox.write_to(call)), asyncio.create_task(self._watch(call))]
        try:
            async for batch in call:
                self.on_batch(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise NodeUnavailable("it is silent, or does not read") from None  # `_watch` cancelled the call
        finally:
            for other in beside:
                other.cancel()
            call.cancel()
            self._outbox.close()

    async def _watch(self, call: "aio.StreamStreamCall[bytes, node_pb2.StepBatch]") -> None:
        silence = self._silence  # if the process is frozen or cut off, gRPC's pings end the stream after 2 s
        while not (self._outbox.is_stuck or silence.is_hopeless or (silence.is_final and self._may_suspect(self))):
            await asyncio.sleep(TICK_S)
            silence.tick()
            if silence.is_unusual and not self.suspected and self._may_suspect(self):
                self._suspect()
        call.cancel()

    def _suspect(self) -> None:
        """Fail the node's legs, so that they are retried elsewhere. The stream stays open in case it is only slow."""
        _log.warning("node %s is silent (%d requests on it)", self.record.node_id, len(self.legs))
        self.suspected = True
        self._fail_legs()
        self._on_change()

    def _down(self, why: str) -> None:
        if self.alive:
            _log.warning("lost node %s: %s (%d requests on it)", self.record.node_id, why, len(self.legs))
        elif why not in ("dropped", self._reason):  # not every attempt is logged
            _log.warning("cannot attach to node %s: %s", self.record.node_id, why)
        self._reason = why
        self.alive = self.suspected = False
        self._fail_legs()
        self._on_change()

    def _fail_legs(self) -> None:
        legs, self.legs = list(self.legs.values()), {}
        for leg in legs:
            leg.on_lost(self)
