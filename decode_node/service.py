"""The decode leg of a request, and requests that run on this node alone.

A request whose KV is sent here passes through these states, through which its owner task (`_receive`) takes it:

    queued      the router has started it; blocks for its prompt are not free yet (`reservations`)
    granted     blocks are allocated and receives posted; the grant is on its way to the router and the prefill node
    committed   the prefill node has sent all KV, and its digests match
    running     in the continuous batch; tokens go to the router's session, from the second output token on
    over        the router is told; the blocks are released

It can go from each state to *over* at once: its router cancels it or is gone, a newer attempt replaces it, its deadline
passes, or its transfer fails. Blocks that a transfer may still write to are released only when that has become
impossible, that is, when `IncomingTransfer.cancel` has returned. A request that is prefilled here (no prefill node is
named) is queued in the engine, then running. The router is told of a leg's end by Finished, or by Failed if the leg was
never accepted, unless the router ended it itself.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from baton.errors import BatonError
from baton.kv.layout import KVLayout
from baton.node.legs import all_over, check_prompt, entered, own, within_time
from baton.node.load import ERRORS, LoadBoard
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import FinishReason, Generation
from baton.telemetry.timeline import TimelineBook
from baton.v1 import transfer_pb2
from decode_node.legs import DecodeLeg
from decode_node.outputs import Outputs
from decode_node.reservations import Reservations
from engine.engine import Engine
from engine.outputs import StepOutput
from engine.request import Request
from engine.request_events import events
from engine.step_loop import StepLoop
from kv_transfer.receiver import KVReceiver

MAX_LEASE_S = 120.0


class DecodeService:
    """Runs the decode legs that routers start; implements `baton.node.service.Legs`."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        step_loop: StepLoop,
        receiver: KVReceiver,
        sessions: Sessions,
        board: LoadBoard,
        timelines: TimelineBook,
    ) -> None:
        self._layout, self._num_blocks = layout, num_blocks
        self._step_loop, self._receiver = step_loop, receiver
        self._sessions, self._board, self._timelines = sessions, board, timelines
        self._reservations = Reservations(board)
        self._loop = asyncio.get_running_loop()
        self.outputs = Outputs(sessions, board)
        self._legs: set[DecodeLeg] = set()

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Start a leg: grant blocks to that prefill node, or, if none is named, compute the prompt here."""
        leg = DecodeLeg(generation)
        if not entered(leg, self._sessions, self._check):
            return
        self._timelines.add(leg.timeline)
        walk = self._receive(leg, prefill_node_id, prefill_epoch) if prefill_node_id else self._generate(leg)
        own(leg, self._own(leg, walk), self._legs)

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Ignore the grant: decode nodes do not send KV."""

    def deliver(self, step: StepOutput) -> None:
        """Handle the output of a step. Called in the event loop after each step."""
        self.outputs.deliver(step)
        self._reservations.freed()

    async def close(self) -> None:
        """Cancel the legs that are left, and return when all blocks have been released."""
        await all_over(self._legs)

    async def _own(self, leg: DecodeLeg, walk: Coroutine[Any, Any, None]) -> None:
        """Take a leg through its states, then release what it holds, whatever happened."""
        error: BatonError | None = None
        try:
            async with within_time(leg.generation):
                await walk
        except BatonError as raised:
            error = raised
        leg.is_ending = True
        leg.timeline.end("" if error is None else error.code or "")
        walk.close()
        self._tell_end(leg, error)
        if leg.incoming is not None and not leg.is_shipped:
            await leg.incoming.cancel()
        self._step_loop.submit(lambda engine: self.outputs.release(engine, leg))

    def _accept(self, leg: DecodeLeg, grant: transfer_pb2.Grant | None) -> None:
        leg.is_accepted = True
        leg.timeline.reply()
        self._sessions.grant(leg, grant)

    def _tell_end(self, leg: DecodeLeg, error: BatonError | None) -> None:
        if error is not None:
            ERRORS.labels(error.code).inc()
            if leg.is_accepted:
                self._sessions.finish(leg, leg.num_output_tokens, FinishReason.ERROR, error.code or "", error.message)
            else:
                self._sessions.fail(leg, error)
        self._sessions.close(leg)

    def _check(self, generation: Generation) -> None:
        check_prompt(generation, self._layout, self._num_blocks)

    async def _receive(self, leg: DecodeLeg, prefill_node_id: str, prefill_epoch: int) -> None:
        await self._prepare(leg)
        asked_s = time.monotonic()
        await self._reservations.take(lambda: self._step_loop.call(lambda engine: self._reserve(engine, leg)))
        request = leg.reserved()
        incoming = leg.incoming = self._receiver.grant(
            request.block_ids[request.num_present_blocks :],
            request.num_present_blocks,
            prefill_node_id,
            prefill_epoch,
            min(leg.generation.timeout_ms / 1000, MAX_LEASE_S),
            leg.last_block_hash,
        )
        granted_s = time.monotonic()
        leg.timeline.add("wait for blocks", asked_s, num_cached_blocks=request.num_present_blocks)
        self._accept(leg, incoming.grant)
        commit = await incoming.committed()
        leg.timeline.add("wait for KV", granted_s, num_blocks=incoming.grant.num_missing_blocks, peer=prefill_node_id)
        leg.begin_decoding()
        await self._step_loop.call(lambda engine: engine.start(request, commit.first_token))
        await leg.over

    async def _prepare(self, leg: DecodeLeg) -> None:
        leg.grammar = await self._step_loop.prepare(leg.generation)
        if leg.grammar is not None:
            leg.timeline.add("wait for grammar", leg.arrived_s)

    def _reserve(self, engine: Engine, leg: DecodeLeg) -> bool:
        request = engine.reserve(leg.generation, leg.grammar)
        if request is None:
            self.outputs.publish(engine)  # the length of the queue is part of the load
            return False
        leg.last_block_hash = request.last_block_hash
        self._expect(engine, request, leg)
        return True

    def _expect(self, engine: Engine, request: Request, leg: DecodeLeg) -> None:
        leg.request = request
        leg.timeline.more = lambda: events(request, engine.steps.times, is_shipped=leg.is_shipped)
        self.outputs.expect(request, leg)
        self.outputs.publish(engine)

    async def _generate(self, leg: DecodeLeg) -> None:
        self._board.check_room()
        await self._prepare(leg)
        await self._step_loop.call(lambda engine: self._add(engine, leg))
        await leg.over

    def _add(self, engine: Engine, leg: DecodeLeg) -> None:
        self._expect(engine, engine.add(leg.generation, prefill_only=False, grammar=leg.grammar), leg)
        # from here, so that it precedes all output: on a busy host the request can be over before its owner runs again
        self._loop.call_soon_threadsafe(self._accept, leg, None)
