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
from baton.node.session import Leg
from baton.node.shell import NodeShell
from baton.request import FinishReason, Generation
from baton.v1 import node_pb2, transfer_pb2
from engine.engine import Engine
from engine.leg_service import LegService
from engine.outputs import Output, StepOutput
from engine.step_loop import StepLoop
from engine.wire import first_token
from kv_transfer.sender import KVSender
from prefill_node.legs import PrefillLeg
from prefill_node.outputs import Outputs

GRANT_PATIENCE_S = 0.5  # a grant comes within milliseconds if the decode node has room


class PrefillService(LegService[PrefillLeg]):
    """Runs the prefill legs that routers start."""

    outputs: Outputs

    def __init__(self, engine: Engine, step_loop: StepLoop, shell: NodeShell, sender: KVSender) -> None:
        super().__init__(engine, step_loop, shell, Outputs(shell.board))
        self._sender = sender

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Start a leg that computes a prompt and sends its KV. The prefill node's name is for decode nodes only."""
        leg = PrefillLeg(generation, self._layout.num_layer_groups, self._sender.open)
        self._run(leg, lambda: self._walk(leg))

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Pass on the decode node's grant to its leg."""
        if isinstance(leg, PrefillLeg):
            leg.take_grant(grant)

    def deliver(self, step: StepOutput) -> None:
        """Handle the output of a step. Called in the event loop after each step."""
        self.outputs.deliver(step)

    def _check(self, generation: Generation) -> None:
        self._board.check_room()
        super()._check(generation)

    def _tell_end(self, leg: PrefillLeg, error: BatonError | None) -> None:
        if error is not None:
            self._sessions.fail(leg, error)

    async def _end_transfer(self, leg: PrefillLeg) -> None:
        if leg.transfer is not None:
            await leg.transfer.abort()  # does nothing after a commit

    async def _walk(self, leg: PrefillLeg) -> None:
        await self._prepare(leg)
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
        self._expect(engine, engine.add(generation, prefill_only=True, grammar=grammar), leg)

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
