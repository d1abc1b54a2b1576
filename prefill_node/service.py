"""The prefill leg of a request. Its life cycle on this node, through which its owner task (`_walk`) takes it:

    queued       the generation has arrived, and waits in the engine's queue
    computing    scheduled: it has all its blocks, and reports each layer group of each chunk that is done. Once it has
                 its grant, which comes before, during or after this, these blocks are sent while the rest is computed
    sampled      token 0 is sent to the router; the blocks stay held
    set aside    no grant has come for a while: the blocks are released, and recomputed when it comes
    committing   the last blocks are sent; the decode node checks and accepts the KV
    over         the router is told; the blocks are released (and stay cached)

If token 0 is also the last token, nothing is transferred. A leg can go from each state to *over* at once: its router
cancels it or is gone, a newer attempt arrives, its deadline passes, or the transfer fails. The blocks are released only
when nothing reads them any more: after the commit, or when `OutgoingTransfer.abort` has returned.
"""

import asyncio
import time

import msgspec

from baton.errors import BatonError
from baton.kv.layout import KVLayout
from baton.node.legs import all_over, check_prompt, entered, own, within_time
from baton.node.load import ERRORS, LoadBoard
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import FinishReason, Generation
from baton.telemetry.timeline import TimelineBook
from baton.v1 import node_pb2, transfer_pb2
from engine.engine import Engine
from engine.outputs import Output, StepOutput
from engine.request_events import events
from engine.step_loop import StepLoop
from engine.wire import first_token
from kv_transfer.sender import KVSender
from prefill_node.legs import PrefillLeg
from prefill_node.outputs import Outputs

GRANT_PATIENCE_S = 0.5  # a grant comes within milliseconds if the decode node has room


class PrefillService:
    """Runs the prefill legs that routers start; implements `baton.node.service.Legs`."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        step_loop: StepLoop,
        sender: KVSender,
        sessions: Sessions,
        board: LoadBoard,
        timelines: TimelineBook,
    ) -> None:
        self._layout, self._num_blocks = layout, num_blocks
        self._step_loop, self._sender = step_loop, sender
        self._sessions, self._board, self._timelines = sessions, board, timelines
        self.outputs = Outputs(board)
        self._legs: set[PrefillLeg] = set()

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Start a leg that computes a prompt and sends its KV. The prefill node's name is for decode nodes only."""
        leg = PrefillLeg(generation, self._layout.num_layer_groups, self._sender.open)
        if not entered(leg, self._sessions, self._check):
            return
        self._timelines.add(leg.timeline)
        own(leg, self._own(leg), self._legs)

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Pass on the decode node's grant to its leg."""
        if isinstance(leg, PrefillLeg):
            leg.take_grant(grant)

    def deliver(self, step: StepOutput) -> None:
        """Handle the output of a step. Called in the event loop after each step."""
        self.outputs.deliver(step)

    async def close(self) -> None:
        """Cancel the legs that are left, and return when all blocks have been released."""
        await all_over(self._legs)

    async def _own(self, leg: PrefillLeg) -> None:
        """Take a leg through its states, then release what it holds, whatever happened."""
        error: BatonError | None = None
        try:
            async with within_time(leg.generation):
                await self._walk(leg)
        except BatonError as raised:
            error = raised
            ERRORS.labels(error.code).inc()
        leg.is_ending = True
        leg.timeline.end("" if error is None else error.code or "")
        if error is not None:
            self._sessions.fail(leg, error)
        self._sessions.close(leg)
        if leg.transfer is not None:
            await leg.transfer.abort()  # does nothing after a commit
        self._step_loop.submit(lambda engine: self.outputs.release(engine, leg))

    async def _walk(self, leg: PrefillLeg) -> None:
        leg.grammar = await self._step_loop.prepare(leg.generation)
        if leg.grammar is not None:
            leg.timeline.add("wait for grammar", leg.timeline.began_s)
        await self._step_loop.call(lambda engine: self._add(engine, leg))
        output = await leg.output
        if output.error is not None:
            raise output.error
        leg.timeline.mark("first token")
        leg.timeline.reply()
        if (session := self._sessions.of(leg)) is not None:
            session.add_first_token(first_token(output))
        if output.finish_reason is FinishReason.UNFINISHED:
            await self._opened(leg)
            await self._commit(leg, output)

    async def _opened(self, leg: PrefillLeg) -> None:
        """Wait until the transfer is open. A leg that waits long for its grant releases its blocks meanwhile, and
        recomputes those that are evicted by then.

        This prevents a deadlock: requests that wait here for a grant would hold blocks that granted requests need, and
        those hold the blocks at the decode node for which the others wait. With two routers, the two nodes can have
        started with different requests.
        """
        await asyncio.wait([leg.opened], timeout=GRANT_PATIENCE_S)
        if leg.set_aside():
            await self._step_loop.call(lambda engine: self.outputs.release(engine, leg))
            leg.timeline.mark("set aside")
            await leg.granted.wait()
            await self._step_loop.call(lambda engine: self._add(engine, leg, is_told=True))
            if error := (await leg.output).error:
                raise error
        await leg.opened

    def _add(self, engine: Engine, leg: PrefillLeg, *, is_told: bool = False) -> None:
        """Add the request to the engine. `is_told`: the router already has token 0, so the token drawn now is dropped,
        and must not end the request."""
        generation, grammar = leg.generation, leg.grammar
        if is_told:
            sampling = msgspec.structs.replace(generation.sampling, ignore_eos=True, stop_token_ids=(), grammar=None)
            generation, grammar = msgspec.structs.replace(generation, sampling=sampling), None
        request = leg.request = engine.add(generation, prefill_only=True, grammar=grammar)
        leg.last_block_hash = request.last_block_hash
        leg.timeline.more = lambda: events(request, engine.steps.times)
        self.outputs.expect(request, leg)
        self.outputs.publish(engine)

    async def _commit(self, leg: PrefillLeg, output: Output) -> None:
        transfer, generation = leg.transfer, leg.generation
        if transfer is None:
            raise RuntimeError("the leg has no transfer to commit")
        committed_s = time.monotonic()
        stats = await transfer.commit(
            len(generation.token_ids), leg.last_block_hash, output.token_id, generation.timeout_ms / 1000
        )
        leg.timeline.add(
            "transfer",
            transfer.began_s or committed_s,
            num_bytes=stats.num_bytes,
            num_blocks=stats.num_blocks,
            transport=stats.transport,
            tail_ms=round(1000 * stats.tail_s, 3),
        )
        if (session := self._sessions.of(leg)) is not None:
            session.add_transferred(
                node_pb2.Transferred(
                    key=generation.key,
                    attempt=generation.attempt,
                    num_bytes=stats.num_bytes,
                    num_blocks=stats.num_blocks,
                    tail_s=stats.tail_s,
                    transport=stats.transport,
                )
            )

    def _check(self, generation: Generation) -> None:
        self._board.check_room()
        check_prompt(generation, self._layout, self._num_blocks)
