"""One node as this router sees it: a channel, the Attach stream on it, and the legs that depend on the node.

A step batch is split into one call per request. Rows of older attempts and rows seen before are dropped; a missing row
fails its leg. The node is alive while its stream speaks: 2 s of silence, the end of the stream, a missing message or
another incarnation fail every leg at once, and the link attaches anew. After 1.1 s of silence the node is *suspected*:
where the rest of its pool speaks, its requests go there, and it gets no new ones until it speaks again, which costs a
node that is merely slow nothing else. One that beats but no longer steps stays out until it does. What becomes of a
request is decided above.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from grpc import aio

from baton import rpc, tasks
from baton.errors import BatonError, NodeUnavailable, TransferError
from baton.registry import NodeRecord
from baton.tls import Identity
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    prefill_pb2_grpc,
    prompt_pb2_grpc,
    trace_pb2_grpc,
    types_pb2,
)
from baton.v1.types_pb2 import TokenLogprobs
from router.fleet_costs import FleetCosts
from router.node_state import NodeState

TICK_S = 0.125
SUSPECT_TICKS = 9  # of our own loop, so a stall of this process suspects nobody; two lost packets are resent by then
LOST_TICKS = 16
_UNUSUAL = 2.0  # times the longest silence of late
_FORGETTING = 0.995  # of that, a message
STUCK_S = 30.0  # with requests running and not one step done; a step of a long chunk on a slow machine takes seconds
AVOID_S = 1.0
MAX_BACKOFF_S = 1.0
CANCEL_TIMEOUT_S = 2.0
MAX_CANCELS = 8192

_CLOSED_STATES = (types_pb2.NODE_STATE_STARTING, types_pb2.NODE_STATE_DRAINING)

_STATE_NAMES = {types_pb2.NODE_STATE_STARTING: "starting", types_pb2.NODE_STATE_DRAINING: "draining"}
STATES = ("ready", "starting", "draining", "stuck", "lost")  # lost: it answered once, and is silent now

_log = logging.getLogger(__name__)


class Leg(Protocol):
    """What of an attempt lives on a node."""

    key: int
    attempt: int
    next_index: int  # output position of the next token
    fresh: list[int]  # tokens of the batch being read

    def on_tokens(self, logprobs: list[TokenLogprobs] | None) -> None:
        """`fresh` holds the next tokens, up to `next_index`: take them."""

    def on_started(self, started: types_pb2.Started) -> None:
        """Its first step on the decode node is over."""

    def on_finished(self, finished: types_pb2.Finished) -> None:
        """The node has said its last word on it."""

    def fail(self, error: BatonError) -> None:
        """The leg is lost. Idempotent."""


class NodeLink:
    """Made by the fleet view, one per incarnation of a node."""

    def __init__(
        self,
        record: NodeRecord,
        router_id: str,
        service_token: str,
        on_change: Callable[[], None],
        costs: FleetCosts,
        cancels: dict[int, int] | None = None,
        tls: Identity | None = None,
        may_suspect: Callable[["NodeLink"], bool] = lambda _: False,
    ) -> None:
        """`on_change` is called whenever the node came, went, or told its load; `costs` is the fleet's.

        `may_suspect` says whether others of the pool can take what runs on a silent node.

        `cancels` are those that an earlier link to the same incarnation could not deliver.
        """
        self.record = record
        self.alive = False
        self.stuck = False
        self.suspected = False
        self.load = types_pb2.Load()
        self.state = NodeState()
        self.legs: dict[int, Leg] = {}
        self._router_id = router_id
        self._on_change = on_change
        self._costs = costs
        self._may_suspect = may_suspect
        self.metadata = rpc.metadata(service_token)  # of every call
        self._channel = rpc.channel(record.address, tls)
        self._node = node_pb2_grpc.NodeStub(self._channel)
        self.prefill = prefill_pb2_grpc.PrefillStub(self._channel)
        self.decode = decode_pb2_grpc.DecodeStub(self._channel)
        self.prompt = prompt_pb2_grpc.PromptStub(self._channel)
        self.trace = trace_pb2_grpc.TraceStub(self._channel)
        self._next_sequence = 0
        self._silent_ticks = 0
        self._usual_ticks = 0.0  # the longest silence of late: on a busy host words come late
        self._stepped_at = time.monotonic()
        self._avoid_until = float("-inf")
        self._cancels = cancels or {}  # key -> attempt
        self._canceller: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def accepting(self) -> bool:
        """Whether a new request may go there."""
        ready = self.alive and not (self.stuck or self.suspected) and self.load.state not in _CLOSED_STATES
        return ready and time.monotonic() >= self._avoid_until

    @property
    def health(self) -> str:
        """One of STATES."""
        if not self.alive:
            return "lost" if self.load.num_blocks else "starting"
        if self.suspected:
            return "lost"
        if self.stuck:
            return "stuck"
        return _STATE_NAMES.get(self.load.state, "ready")

    @property
    def speaks(self) -> bool:
        """Whether it has been heard just now."""
        return self.alive and self._silent_ticks < SUSPECT_TICKS

    @property
    def draining(self) -> bool:
        """Whether the node leaves on purpose."""
        return self.load.state == types_pb2.NODE_STATE_DRAINING

    def start(self) -> None:
        """Attach, and stay attached until `close`."""
        self._spawn(self._stay_attached())

    async def close(self) -> None:
        """Let go of the node; legs that depend on it fail."""
        await asyncio.gather(*(tasks.end(task) for task in self._tasks))
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

    def cancel(self, key: int, attempt: int) -> None:
        """Tell the decode node that nobody wants this attempt; a node that cannot be reached hears of it later."""
        if len(self._cancels) < MAX_CANCELS:
            self._cancels[key] = max(attempt, self._cancels.get(key, 0))
        self._deliver_cancels()

    @property
    def undelivered_cancels(self) -> dict[int, int]:
        """Attempts that the node may still serve though nobody wants them."""
        return dict(self._cancels)

    def on_batch(self, batch: node_pb2.StepBatch) -> None:
        """Hand on what a message says. Raises NodeUnavailable where one is missing or of another incarnation."""
        if batch.epoch != self.record.epoch:
            raise NodeUnavailable("another incarnation")
        if batch.sequence != self._next_sequence:
            if batch.sequence < self._next_sequence:
                return
            raise NodeUnavailable("a message is missing")
        self._next_sequence += 1
        self._usual_ticks = max(float(self._silent_ticks), self._usual_ticks * _FORGETTING)
        self._silent_ticks = 0
        self.suspected = False
        if batch.keys:
            self._on_rows(batch)
        for started in batch.started:
            if leg := self._leg(started.key, started.attempt):
                leg.on_started(started)
        for finished in batch.finished:
            if leg := self._leg(finished.key, finished.attempt):
                leg.on_finished(finished)
        if batch.HasField("load"):
            self._on_load(batch.load)

    def _on_rows(self, batch: node_pb2.StepBatch) -> None:
        legs = self.legs
        touched = []
        for key, attempt, index, token_id in zip(
            batch.keys, batch.attempts, batch.indices, batch.token_ids, strict=True
        ):
            leg = legs.get(key)
            if leg is None or leg.attempt != attempt:
                continue
            if index != leg.next_index:
                if index > leg.next_index:
                    leg.fail(TransferError("tokens were lost between node and router"))
                continue
            leg.next_index = index + 1
            if not leg.fresh:
                touched.append(leg)
            leg.fresh.append(token_id)
        logprobs = _by_leg(batch.logprobs) if batch.logprobs else {}
        for leg in touched:
            leg.on_tokens(logprobs.get((leg.key, leg.attempt)))

    def _leg(self, key: int, attempt: int) -> Leg | None:
        leg = self.legs.get(key)
        return leg if leg is not None and leg.attempt == attempt else None

    def _on_load(self, load: types_pb2.Load) -> None:
        now = time.monotonic()
        if load.num_steps != self.load.num_steps or not load.num_running:
            self._stepped_at = now
        self.load = load
        self._costs.take_load(load)
        self.state.take_load(load, self._costs.pooled, now)
        self.alive = True
        self._deliver_cancels()
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
        self._next_sequence = self._silent_ticks = 0
        call = self._node.Attach(node_pb2.AttachRequest(router_id=self._router_id), metadata=self.metadata)
        watch = asyncio.create_task(self._watch(call))
        try:
            async for batch in call:
                self.on_batch(batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise NodeUnavailable("silent") from None  # it was the call that was cancelled, by the watch
        finally:
            watch.cancel()
            call.cancel()

    async def _watch(self, call: "aio.UnaryStreamCall[node_pb2.AttachRequest, node_pb2.StepBatch]") -> None:
        while self._silent_ticks < LOST_TICKS:
            await asyncio.sleep(TICK_S)
            self._silent_ticks += 1
            is_unusual = self._silent_ticks >= max(SUSPECT_TICKS, _UNUSUAL * self._usual_ticks)
            if is_unusual and not self.suspected and self._may_suspect(self):
                self._suspect()
        call.cancel()

    def _suspect(self) -> None:
        """What runs there is begun elsewhere; the stream stays, for a node that was only slow."""
        _log.warning("node %s is silent (%d requests on it)", self.record.node_id, len(self.legs))
        self.suspected = True
        self._fail_legs()
        self._on_change()

    def _down(self, why: str) -> None:
        if self.alive:
            _log.warning("lost node %s: %s (%d requests on it)", self.record.node_id, why, len(self.legs))
        self.alive = self.suspected = False
        self._fail_legs()
        self._on_change()

    def _fail_legs(self) -> None:
        legs, self.legs = list(self.legs.values()), {}
        for leg in legs:
            leg.fail(NodeUnavailable("the node was lost"))

    def _deliver_cancels(self) -> None:
        if self._cancels and (self._canceller is None or self._canceller.done()):
            self._canceller = self._spawn(self._send_cancels())

    async def _send_cancels(self) -> None:
        await asyncio.sleep(0)  # gather those of this turn of the loop
        while self._cancels:
            cancels = dict(self._cancels)
            request = decode_pb2.CancelRequest(
                router_id=self._router_id, keys=list(cancels), attempts=list(cancels.values())
            )
            try:
                await self.decode.Cancel(request, timeout=CANCEL_TIMEOUT_S, metadata=self.metadata)
            except aio.AioRpcError:
                return  # kept for the next sign of life
            self._cancels = {key: attempt for key, attempt in self._cancels.items() if cancels.get(key) != attempt}

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _by_leg(rows: Iterable[TokenLogprobs]) -> dict[tuple[int, int], list[TokenLogprobs]]:
    found: dict[tuple[int, int], list[TokenLogprobs]] = {}
    for row in rows:
        found.setdefault((row.key, row.attempt), []).append(row)
    return found
