"""The Prompt service, which nodes of both pools offer: log-probabilities, embedding, or first token of a prompt.

A leg is one call. The engine runs it as a prefill-only request; its results wait in a queue until they are written.
When the call ends, for whatever reason, the engine forgets the request, and its blocks are free (and cached).
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
from grpc import aio

from baton.errors import BatonError, InvalidRequest
from baton.net import rpc_errors
from baton.node.load import CACHED_TOKENS, ERRORS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from baton.node.sessions import Sessions
from baton.request import Generation
from baton.telemetry.timeline import Timeline, TimelineBook
from baton.v1 import prompt_pb2, prompt_pb2_grpc
from engine.engine import Engine
from engine.leg_service import within_time
from engine.outputs import NO_TOKEN, Output, StepOutput
from engine.owners import Owners
from engine.prompt_logprobs import PromptLogprobs
from engine.request import PromptWork, Request
from engine.request_events import events
from engine.step_loop import StepLoop
from engine.wire import first_token

MAX_ROWS_PER_MESSAGE = 1024  # with 20 alternatives each: 200 KB


class PromptLeg:
    """One call.

    `events` holds the results that have not been written yet, an Output last. There is at most one for each chunk of
    the prompt, so the queue needs no other bound.
    """

    def __init__(self, proto: prompt_pb2.PromptRequest, task: "asyncio.Task[Any] | None") -> None:
        self.generation = generation = Generation.from_proto(proto.generation, proto.router_id)
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
        self._task = task
        self.work = PromptWork(proto.num_logprobs if proto.scores else -1, proto.embeds)
        self.dimensions = proto.dimensions
        self.request: Request | None = None  # set on the step thread
        self.events: asyncio.Queue[PromptLogprobs | Output] = asyncio.Queue()

    def cancel(self) -> None:
        """End the call. Idempotent, returns at once."""
        if self._task is not None:
            self._task.cancel()


class PromptService(prompt_pb2_grpc.PromptServicer):
    """Implements the Prompt service."""

    def __init__(self, step_loop: StepLoop, sessions: Sessions, board: LoadBoard, timelines: TimelineBook) -> None:
        self._step_loop, self._sessions, self._board, self._timelines = step_loop, sessions, board, timelines
        self.owners: Owners[PromptLeg] = Owners(board)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def Compute(  # type: ignore[override]  # noqa: N802
        self, request: prompt_pb2.PromptRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Run one leg, in this task."""
        task = asyncio.current_task()
        try:
            leg = PromptLeg(request, task)
        except InvalidRequest as error:
            await rpc_errors.abort(context, error)
        self._timelines.add(leg.timeline)
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            async with within_time(leg.generation):
                self._sessions.open(leg)
                self._board.check_room()
                await self._step_loop.call(lambda engine: self._add(engine, leg))
                await self._write_events(leg, context)
        except BatonError as error:
            ERRORS.labels(error.code).inc()
            if context.cancelled():
                raise asyncio.CancelledError from None
            await rpc_errors.abort(context, error)
        finally:
            leg.timeline.end()
            self._sessions.close(leg)
            self._step_loop.submit(lambda engine: self.owners.release(engine, leg))

    def deliver(self, step: StepOutput) -> None:
        """Queue a step's results for the legs that still exist. In the event loop."""
        for request, scored in step.prompt_logprobs:
            if (leg := self.owners.of(request)) is not None:
                leg.events.put_nowait(scored)
        if not any(self.owners.of(request) for request in step.ended):
            return
        for output in step.outputs:
            if (leg := self.owners.of(output.request)) is not None:
                leg.events.put_nowait(output)
                PROMPT_TOKENS.inc(output.request.num_prompt_tokens)
                CACHED_TOKENS.inc(output.request.num_cached_tokens)
                OUTPUT_TOKENS.inc(output.token_id != NO_TOKEN)

    async def close(self) -> None:
        """Cancel the calls that are left, and return when all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _add(self, engine: Engine, leg: PromptLeg) -> None:
        if leg.dimensions > engine.model_config.hidden_size:
            limit = engine.model_config.hidden_size
            raise InvalidRequest(f"this model's embeddings have {limit} dimensions", param="dimensions")
        added = leg.request = engine.add(leg.generation, prefill_only=True, prompt_work=leg.work)
        leg.timeline.more = lambda: events(added, engine.steps.times)
        self.owners.expect(added, leg)
        self.owners.publish(engine)

    async def _write_events(self, leg: PromptLeg, context: aio.ServicerContext[Any, Any]) -> None:
        while isinstance(event := await leg.events.get(), PromptLogprobs):
            for rows in _messages(event):
                await context.write(prompt_pb2.PromptEvent(logprobs=rows))
        if event.error is not None:
            raise event.error
        leg.timeline.reply()
        await context.write(prompt_pb2.PromptEvent(computed=_computed(event, leg.dimensions)))


def _messages(scored: PromptLogprobs) -> Iterator[prompt_pb2.PromptLogprobs]:
    for start in range(0, len(scored.logprobs), MAX_ROWS_PER_MESSAGE):
        part = slice(start, start + MAX_ROWS_PER_MESSAGE)
        yield prompt_pb2.PromptLogprobs(
            position=scored.position + start,
            logprobs=scored.logprobs[part].tolist(),
            ranks=scored.ranks[part].tolist(),
            num_top=scored.top_token_ids.shape[1],
            top_token_ids=scored.top_token_ids[part].ravel().tolist(),
            top_logprobs=scored.top_logprobs[part].ravel().tolist(),
        )


def _computed(output: Output, dimensions: int) -> prompt_pb2.Computed:
    request = output.request
    return prompt_pb2.Computed(
        first_token=None if output.token_id == NO_TOKEN else first_token(output),
        num_cached_tokens=request.num_cached_tokens,
        queue_s=request.first_scheduled_s - request.arrival_s,
        prefill_s=request.first_token_s - request.first_scheduled_s,
        embedding=_cut(request.embedding, dimensions),
    )


def _cut(embedding: bytes, dimensions: int) -> bytes:
    """Truncate a vector to its first dimensions, and scale it to length 1 again; 0 dimensions: leave it as it is."""
    if not dimensions or not embedding:
        return embedding
    vector = np.frombuffer(embedding, "<f4")[:dimensions]
    return bytes((vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4").tobytes())
