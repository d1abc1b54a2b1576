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

from baton.errors import BatonError
from baton.node.session import Leg
from baton.node.shell import NodeShell
from baton.request import FinishReason, Generation
from baton.v1 import transfer_pb2
from decode_node.legs import DecodeLeg
from decode_node.outputs import Outputs
from decode_node.reservations import Reservations
from engine.engine import Engine
from engine.leg_service import LegService
from engine.outputs import StepOutput
from engine.step_loop import StepLoop
from kv_transfer.receiver import KVReceiver

MAX_LEASE_S = 120.0


class DecodeService(LegService[DecodeLeg]):
    """Runs the decode legs that routers start."""

    outputs: Outputs

    def __init__(self, engine: Engine, step_loop: StepLoop, shell: NodeShell, receiver: KVReceiver) -> None:
        super().__init__(engine, step_loop, shell, Outputs(shell.sessions, shell.board))
        self._receiver = receiver
        self._reservations = Reservations(shell.board)
        self._loop = asyncio.get_running_loop()

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Start a leg: grant blocks to that prefill node, or, if none is named, compute the prompt here."""
        leg = DecodeLeg(generation)
        if prefill_node_id:
            self._run(leg, lambda: self._receive(leg, prefill_node_id, prefill_epoch))
        else:
            self._run(leg, lambda: self._generate(leg))

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Ignore the grant: decode nodes do not send KV."""

    def deliver(self, step: StepOutput) -> None:
        """Handle the output of a step. Called in the event loop after each step."""
        self.outputs.deliver(step)
        self._reservations.freed()

    def _accept(self, leg: DecodeLeg, grant: transfer_pb2.Grant | None) -> None:
        leg.is_accepted = True
        leg.timeline.reply()
        self._sessions.grant(leg, grant)

    def _tell_end(self, leg: DecodeLeg, error: BatonError | None) -> None:
        if error is not None and leg.is_accepted:
            self._sessions.finish(leg, leg.num_output_tokens, FinishReason.ERROR, error.code or "", error.message)
        elif error is not None:
            self._sessions.fail(leg, error)

    async def _end_transfer(self, leg: DecodeLeg) -> None:
        if leg.incoming is not None and not leg.is_shipped:
            await leg.incoming.cancel()

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

    def _reserve(self, engine: Engine, leg: DecodeLeg) -> bool:
        request = engine.reserve(leg.generation, leg.grammar)
        if request is None:
            self.outputs.publish(engine)  # the length of the queue is part of the load
            return False
        self._expect(engine, request, leg)
        return True

    async def _generate(self, leg: DecodeLeg) -> None:
        self._board.check_room()
        await self._prepare(leg)
        await self._step_loop.call(lambda engine: self._add(engine, leg))
        await leg.over

    def _add(self, engine: Engine, leg: DecodeLeg) -> None:
        self._expect(engine, engine.add(leg.generation, prefill_only=False, grammar=leg.grammar), leg)
        # from here, so that it precedes all output: on a busy host the request can be over before its owner runs again
        self._loop.call_soon_threadsafe(self._accept, leg, None)
