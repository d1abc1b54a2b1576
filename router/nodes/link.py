"""One node as this router sees it: a channel, the Attach stream on it, and the legs that depend on the node.

What the router wants of the node goes out in batches (`outbox`), what it says comes in step batches, of which each leg
hears its own part. The node is alive while its stream speaks: 2 s of silence (5 s where nobody else speaks either, and
its gRPC answers pings), the end of the stream, a missing message, one that the node does not read, or another
incarnation fail every leg at once, and the link attaches anew; the node then cancels what it had. After 1.1 s it is
*suspected*: where the rest of its pool speaks, its requests go there, and it gets no new ones until it speaks, which
costs a node that is merely slow nothing else. One that beats but no longer steps stays out until it does.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from grpc import aio

from baton.errors import ContextLengthExceeded, NodeUnavailable, Overloaded
from baton.net import rpc
from baton.net.registry import NodeRecord
from baton.net.tls import Identity
from baton.process import tasks
from baton.v1 import node_pb2, node_pb2_grpc, prompt_pb2_grpc, trace_pb2_grpc, types_pb2
from router.nodes.fleet_costs import FleetCosts
from router.nodes.leg import Leg
from router.nodes.outbox import MAX_START_BYTES, Outbox
from router.nodes.silence import TICK_S, Silence
from router.nodes.state import NodeState
from router.nodes.step_batch import tell_legs

STUCK_S = 30.0  # with requests running and not one step done; a step of a long chunk on a slow machine takes seconds
AVOID_S = 1.0
MAX_BACKOFF_S = 1.0
_CLOSE_S = 0.5

_STATE_NAMES = {types_pb2.NODE_STATE_STARTING: "starting", types_pb2.NODE_STATE_DRAINING: "draining"}
STATES = ("ready", "starting", "draining", "stuck", "lost")  # lost: it answered once, and is silent now

_log = logging.getLogger(__name__)


class NodeLink:
    """The link to one incarnation of a node. The fleet view makes and closes it."""

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
        """`on_change` hears of news; `may_suspect` says whether others can take what runs on a silent node."""
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
        self.metadata = rpc.metadata(service_token)  # of every call
        self._channel = rpc.channel(record.address, tls)
        self._node = node_pb2_grpc.NodeStub(self._channel)
        self.prompt = prompt_pb2_grpc.PromptStub(self._channel)
        self.trace = trace_pb2_grpc.TraceStub(self._channel)
        self._next_sequence = 0
        self._silence = Silence()
        self._stepped_at = time.monotonic()
        self._avoid_until = float("-inf")
        self._refusals = {"dropped"}  # reasons for which no stream began, told once each
        self._task: asyncio.Task[None] | None = None

    @property
    def accepting(self) -> bool:
        """Whether a new request may go there now."""
        return self.serves and time.monotonic() >= self._avoid_until and not self._outbox.is_full

    @property
    def serves(self) -> bool:
        """Whether new requests go there, be it full at this moment."""
        return self.alive and not (self.stuck or self.suspected) and self.load.state not in _STATE_NAMES

    @property
    def health(self) -> str:
        """One of STATES."""
        if self.suspected or not self.alive:
            return "lost" if self.load.num_blocks else "starting"
        if self.stuck:
            return "stuck"
        return _STATE_NAMES.get(self.load.state, "ready")

    @property
    def speaks(self) -> bool:
        """Whether it has been heard just now."""
        return self.alive and self._silence.is_short

    @property
    def draining(self) -> bool:
        """Whether the node leaves on purpose."""
        return self.load.state == types_pb2.NODE_STATE_DRAINING

    def open(self) -> None:
        """Attach, and stay attached until `close`."""
        self._task = asyncio.create_task(self._stay_attached())

    async def close(self) -> None:
        """Let go of the node, once it has been told what it had to be told; legs that depend on it fail."""
        await self._outbox.drain(_CLOSE_S)
        if self._task is not None:
            await tasks.end(self._task)
        self._down("dropped")
        await self._channel.close()

    def avoid(self) -> None:
        """The node has refused a request: no new ones for a moment."""
        self._avoid_until = time.monotonic() + AVOID_S

    def attach(self, leg: Leg) -> None:
        """The leg hears of its rows and of the node's end from now on. Raises NodeUnavailable where it has ended."""
        if not self.alive:
            raise NodeUnavailable("the node is gone")
        self.legs[leg.key] = leg

    def detach(self, leg: Leg) -> None:
        """The leg hears nothing any more. Idempotent."""
        if self.legs.get(leg.key) is leg:
            del self.legs[leg.key]

    def start(self, leg: Leg, generation: types_pb2.Generation, prefill: NodeRecord | None = None) -> None:
        """Begin a leg there; `prefill` ships to it. Raises NodeUnavailable where the node has ended.

        Raises Overloaded where it does not read, ContextLengthExceeded where a message cannot hold the prompt.
        """
        num_bytes = generation.ByteSize()
        if num_bytes > MAX_START_BYTES:
            raise ContextLengthExceeded("the request is too large for a message between services")
        if self._outbox.is_full:
            raise Overloaded("the node does not read")
        self.attach(leg)
        self._outbox.start(generation, num_bytes, prefill)

    def grant(self, granted: node_pb2.Granted) -> None:
        """Hand a decode node's grant on to this prefill node."""
        if self.alive:
            self._outbox.grant(granted)

    def cancel(self, leg: Leg) -> None:
        """Nobody wants the attempt. Where the node is out of reach, its next stream begins with nothing anyway."""
        if self.alive:
            self._outbox.cancel(leg.key, leg.attempt)

    def on_batch(self, batch: node_pb2.StepBatch) -> None:
        """Hand on what a message says. Raises NodeUnavailable where one is missing or of another incarnation."""
        if batch.epoch != self.record.epoch:
            raise NodeUnavailable("another incarnation")
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
        call = self._node.Attach(metadata=self.metadata)
        beside = [asyncio.create_task(self._outbox.write_to(call)), asyncio.create_task(self._watch(call))]
        try:
            async for batch in call:
                self.on_batch(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise NodeUnavailable("silent, or deaf") from None  # it was the call that was cancelled, by the watch
        finally:
            for other in beside:
                other.cancel()
            call.cancel()
            self._outbox.close()

    async def _watch(self, call: "aio.StreamStreamCall[node_pb2.RouterBatch, node_pb2.StepBatch]") -> None:
        silence = self._silence  # of a frozen process, or one cut off, gRPC's pings end the stream after 2 s
        while not (self._outbox.is_stuck or silence.is_hopeless or (silence.is_final and self._may_suspect(self))):
            await asyncio.sleep(TICK_S)
            silence.tick()
            if silence.is_unusual and not self.suspected and self._may_suspect(self):
                self._suspect()
        call.cancel()

    def _suspect(self) -> None:
        """Fail what runs there, so that it begins elsewhere. The stream stays open, for a node that was only slow."""
        _log.warning("node %s is silent (%d requests on it)", self.record.node_id, len(self.legs))
        self.suspected = True
        self._fail_legs()
        self._on_change()

    def _down(self, why: str) -> None:
        if self.alive:
            _log.warning("lost node %s: %s (%d requests on it)", self.record.node_id, why, len(self.legs))
        elif why not in self._refusals:
            _log.warning("cannot attach to node %s: %s", self.record.node_id, why)
        self._refusals.add(why)
        self.alive = self.suspected = False
        self._fail_legs()
        self._on_change()

    def _fail_legs(self) -> None:
        legs, self.legs = list(self.legs.values()), {}
        for leg in legs:
            leg.on_lost(self)
