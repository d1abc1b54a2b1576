"""One attempt at a request's prompt work (log-probabilities, embedding), on a single node, without a transfer.

The results are passed on only when they are complete, so another attempt starts afresh and nothing is reported twice.
If the node has also sampled the first token and more are wanted, the request continues as after a failover.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from grpc import aio

from baton.errors import BatonError, NodeUnavailable, TransferError
from baton.request import FinishReason, Generation
from baton.v1 import prompt_pb2
from router.job import PromptResult, PromptWork
from router.nodes.errors import rpc_error
from router.nodes.leg import Leg, Node
from router.nodes.link import NodeLink
from router.running import Running


class PromptAttempt(Leg):
    """The attempt. Its results come from a Prompt.Compute call; the node's link only reports if the node is lost."""

    def __init__(
        self,
        generation: Generation,
        work: PromptWork,
        link: NodeLink,
        running: Running,
        on_computed: Callable[[], None],
    ) -> None:
        self.key = generation.key
        self.attempt = generation.attempt
        self.fresh: list[int] = []
        self._generation = generation
        self._work = work
        self._link = link
        self._request = running
        self._on_computed = on_computed
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> FinishReason:
        """Run the attempt; returns UNFINISHED if the request continues. Raises Refused, or another BatonError."""
        self._link.attach(self)
        reading = asyncio.create_task(self._read())
        try:
            either: set[asyncio.Future[Any]] = {reading, self._lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._lost.result()
            result, computed = reading.result()
        finally:
            reading.cancel()
            self._forget_loss()
            self._link.detach(self)
        self._on_computed()
        return self._tell(result, computed)

    def on_lost(self, node: Node) -> None:
        """End the attempt: another node has to do the work."""
        self.fail(NodeUnavailable("the node was lost"))

    def fail(self, error: BatonError) -> None:
        """End the attempt with this error. Idempotent."""
        if not self._lost.done():
            self._lost.set_exception(error)

    def _forget_loss(self) -> None:
        if self._lost.done():
            self._lost.exception()  # mark as retrieved
        else:
            self._lost.cancel()

    async def _read(self) -> tuple[PromptResult, prompt_pb2.Computed]:
        work, link = self._work, self._link
        rows: list[prompt_pb2.PromptLogprobs] = []
        request = prompt_pb2.PromptRequest(
            generation=self._generation.to_proto(),
            scores=work.num_logprobs >= 0,
            num_logprobs=max(work.num_logprobs, 0),
            embeds=work.embeds,
            dimensions=work.dimensions,
            router_id=self._generation.router_id,
        )
        call = link.prompt.Compute(request, timeout=self._generation.timeout_ms / 1000, metadata=link.metadata)
        try:
            async for event in call:
                if event.HasField("computed"):
                    return PromptResult(rows, event.computed.embedding), self._checked(rows, event.computed)
                rows.append(event.logprobs)
        except aio.AioRpcError as error:
            raise rpc_error(error, link) from None
        finally:
            call.cancel()
        raise TransferError("the node ended the call before all results had come")

    def _checked(self, rows: list[prompt_pb2.PromptLogprobs], computed: prompt_pb2.Computed) -> prompt_pb2.Computed:
        num_rows = 1
        for part in rows:
            if part.position != num_rows:
                raise TransferError("log-probabilities were lost between node and router")
            num_rows += len(part.logprobs)
        if self._work.num_logprobs >= 0 and num_rows != self._generation.num_prompt_tokens:
            raise TransferError("log-probabilities were lost between node and router")
        if self._work.embeds and not computed.embedding:
            raise TransferError("the node sent no embedding")
        return computed

    def _tell(self, result: PromptResult, computed: prompt_pb2.Computed) -> FinishReason:
        self._request.note(computed.num_cached_tokens, queue_s=computed.queue_s, prefill_s=computed.prefill_s)
        self._request.emit_prompt(result)
        if not computed.HasField("first_token"):
            return FinishReason.UNFINISHED
        first = computed.first_token
        wants_logprobs = self._generation.sampling.num_logprobs >= 0
        self._request.emit([first.token_id], [first.logprobs] if wants_logprobs else None)
        return FinishReason(first.finish_reason)
