# ruff: noqa: N802 - the names of RPCs
"""The prompt service of a node without an engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from baton.net import rpc_errors
from baton.request import FinishReason, Generation
from baton.v1 import prompt_pb2
from tests.integration.dispatch.model import next_token


class Prompts:
    """It scores and embeds as the node's attributes say."""

    def __init__(self, node: Any) -> None:
        self._node = node

    async def Compute(self, request: prompt_pb2.PromptRequest, context: Any) -> AsyncIterator[prompt_pb2.PromptEvent]:
        generation = Generation.from_proto(request.generation, request.router_id)
        self._node.calls.append(("prompt", generation))
        try:
            if self._node.refusals:
                await rpc_errors.abort(context, self._node.refusals.pop(0))
            for position in range(1, generation.num_prompt_tokens) if request.scores else ():
                if position > self._node.prompt_stops_at:
                    await self._node.go.wait()
                if position not in self._node.lost_positions:
                    row = prompt_pb2.PromptLogprobs(position=position, logprobs=[-float(position)], ranks=[1])
                    yield prompt_pb2.PromptEvent(logprobs=row)
            computed = prompt_pb2.Computed(num_cached_tokens=1, queue_s=0.5, prefill_s=0.25)
            if request.embeds:
                computed.embedding = bytes(4 * (request.dimensions or 8))
            if generation.sampling.max_tokens:
                last = generation.sampling.max_tokens == 1
                computed.first_token.token_id = next_token(list(generation.token_ids))
                computed.first_token.finish_reason = FinishReason.LENGTH if last else FinishReason.UNFINISHED
            yield prompt_pb2.PromptEvent(computed=computed)
        except (asyncio.CancelledError, GeneratorExit):  # while it waits, or while a row is written
            self._node.num_broken_runs += 1
            raise
