"""The prefill leg of a request. Its life on this node, as its owner task (`_walk`) sees it:

    queued       the generation has come; the engine has it in its waiting queue
    computing    scheduled: it has all its blocks, and as each layer group of each chunk is done it says so. From the
                 grant on, which comes before, during or after this, those blocks are sent while the rest is computed
    sampled      token 0 goes to the router; the blocks stay held
    committing   the last blocks are sent; the decode node checks and accepts
    over         the router is told, the blocks are released (and stay cached)

Where token 0 is also the last one nothing is transferred. From each state it can go to *over* at once: the router ends
the stream or is gone, a newer attempt comes, the time is up, the transfer fails. The blocks are released only when
nothing reads them any more: after the commit, or when `OutgoingTransfer.abort` has returned.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from baton import rpc_errors
from baton.errors import BatonError, Cancelled, ContextLengthExceeded, InvalidRequest
from baton.kv_layout import KVLayout
from baton.legs import within_time
from baton.node_load import ERRORS, LoadBoard
from baton.request import FinishReason, Generation
from baton.sessions import Sessions
from baton.timeline import TimelineBook
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from engine.engine import Engine
from engine.request_events import events
from engine.step_loop import StepLoop
from engine.wire import first_token
from kv_transfer.sender import KVSender
from prefill_node.legs import PrefillLeg
from prefill_node.outputs import Outputs

_FIRST_MESSAGE_S = 5.0

_Messages = AsyncIterator[prefill_pb2.RunMessage]
_Context = aio.ServicerContext[Any, Any]


class PrefillService(prefill_pb2_grpc.PrefillServicer):
    """The servicer."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        step_loop: StepLoop,
        sender: KVSender,
        sessions: Sessions,
        board: LoadBoard,
        timelines: TimelineBook | None = None,
    ) -> None:
        self._layout, self._num_blocks = layout, num_blocks
        self._step_loop, self._sender, self._sessions, self._board = step_loop, sender, sessions, board
        self._timelines = timelines or TimelineBook()
        self.outputs = Outputs(board)
        self._legs: set[PrefillLeg] = set()

    async def Run(  # type: ignore[override]  # noqa: N802
        self, request_iterator: _Messages, context: _Context
    ) -> None:
        """One leg. Its owner task outlives this call where that is what cleaning up takes."""
        messages = aiter(request_iterator)
        try:
            leg = PrefillLeg(await _read_generation(messages), self._layout.num_layer_groups)
            self._timelines.add(leg.timeline)
            self._legs.add(leg)
            leg.owner = asyncio.create_task(self._own(leg, messages, context), name=leg.generation.request_id)
            leg.owner.add_done_callback(lambda owner: self._over(leg, owner))
            try:
                await asyncio.shield(leg.owner)
            except asyncio.CancelledError:
                leg.cancel()
                raise
        except BatonError as error:
            await rpc_errors.abort(context, error)

    async def close(self) -> None:
        """Cancel what is left, and return when all blocks are given back."""
        legs = list(self._legs)
        for leg in legs:
            leg.cancel()
        if legs:
            await asyncio.wait([leg.owner for leg in legs])

    def _over(self, leg: PrefillLeg, owner: asyncio.Task[None]) -> None:
        self._legs.discard(leg)
        if not owner.cancelled():
            owner.exception()  # its call may be gone: then nobody else asks

    async def _own(self, leg: PrefillLeg, messages: _Messages, context: _Context) -> None:
        """Walk a leg through its states, then give back what it holds, whatever happened. Raises BatonErrors only."""
        code = ""
        try:
            async with within_time(leg.generation):
                self._check(leg.generation)
                self._sessions.open(leg)
                await self._walk(leg, messages, context)
        except BatonError as error:
            code = error.code or ""
            ERRORS.labels(code).inc()
            raise
        finally:
            leg.is_ending = True
            leg.timeline.end(code)
            self._sessions.close(leg)
            if leg.transfer is not None:
                await leg.transfer.abort()  # nothing to do after a commit
            self._step_loop.submit(lambda engine: self._release(engine, leg))

    async def _walk(self, leg: PrefillLeg, messages: _Messages, context: _Context) -> None:
        self._board.check_room()
        leg.grammar = await self._step_loop.prepare(leg.generation)
        await self._step_loop.call(lambda engine: self._add(engine, leg))
        opening = asyncio.create_task(self._open_transfer(leg, messages), name="grant")
        try:
            is_last = await self._send_first_token(leg, context)
            if not is_last:
                await opening
                await self._commit(leg, context)
        finally:
            opening.cancel()
            await asyncio.wait([opening])

    def _add(self, engine: Engine, leg: PrefillLeg) -> None:
        request = leg.request = engine.add(leg.generation, prefill_only=True, grammar=leg.grammar)
        num_full = len(leg.generation.token_ids) // self._layout.block_size
        leg.last_block_hash = request.hashes(num_full)[num_full - 1] if num_full else b""
        leg.timeline.more = lambda: events(request, engine.steps.times)
        self.outputs.expect(request, leg)
        self.outputs.publish(engine)

    def _release(self, engine: Engine, leg: PrefillLeg) -> None:
        """Comes after whatever the leg had asked of the engine before."""
        if leg.request is not None:
            self.outputs.forget(leg.request)
            engine.release(leg.request)
            self.outputs.publish(engine)

    async def _open_transfer(self, leg: PrefillLeg, messages: _Messages) -> None:
        message = await anext(messages, None)
        if message is None or message.WhichOneof("message") != "grant":
            raise Cancelled("the router sent no grant")
        leg.timeline.mark("grant", num_blocks=message.grant.num_missing_blocks)
        leg.attach(self._sender.open(message.grant, await asyncio.shield(leg.scheduled)))

    async def _send_first_token(self, leg: PrefillLeg, context: _Context) -> bool:
        """Whether it is also the last."""
        output = await asyncio.shield(leg.output)
        if output.error is not None:
            raise output.error
        leg.timeline.mark("first token")
        leg.timeline.reply()
        await context.write(prefill_pb2.RunEvent(first_token=first_token(output)))
        return output.finish_reason is not FinishReason.UNFINISHED

    async def _commit(self, leg: PrefillLeg, context: _Context) -> None:
        transfer, output = leg.transfer, leg.output.result()
        if transfer is None:
            raise RuntimeError("no transfer to commit")
        committed_s = time.monotonic()
        stats = await transfer.commit(
            len(leg.generation.token_ids), leg.last_block_hash, output.token_id, leg.generation.timeout_ms / 1000
        )
        leg.timeline.add(
            "transfer",
            transfer.began_s or committed_s,
            num_bytes=stats.num_bytes,
            num_blocks=stats.num_blocks,
            transport=stats.transport,
            tail_ms=round(1000 * stats.tail_s, 3),
        )
        transferred = prefill_pb2.Transferred(
            num_bytes=stats.num_bytes, num_blocks=stats.num_blocks, tail_s=stats.tail_s, transport=stats.transport
        )
        await context.write(prefill_pb2.RunEvent(transferred=transferred))

    def _check(self, generation: Generation) -> None:
        if not generation.token_ids:
            raise InvalidRequest("a request without tokens")
        if len(generation.token_ids) > self._num_blocks * self._layout.block_size:
            raise ContextLengthExceeded("the prompt is longer than this node's KV pool")


async def _read_generation(messages: _Messages) -> Generation:
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            message = await anext(messages, None)
    except TimeoutError:
        raise InvalidRequest("no generation came") from None
    if message is None or message.WhichOneof("message") != "generation":
        raise InvalidRequest("the generation comes first")
    return Generation.from_proto(message.generation)
