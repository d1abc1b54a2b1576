"""Launches the steps of an engine, and lands them: takes over their results when these are on the host.

If `EngineConfig.runs_ahead` is set, a step is launched before the previous one has landed, so that a GPU does not wait
for Python: the tokens that the previous step draws are read on the device, and the host learns them one step later. A
request that reaches its length limit is not in the next step. One that draws a stop token is, but that step's results
for it are dropped. Its blocks become free when no step under way writes to them.

The step under way lands first if the next draws depend on every token before them (grammars, penalties, filters), or if
blocks may run out: only requests whose tokens are all known can be preempted. See ADR 11.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from baton.errors import BatonError, NumericalError
from baton.request import FinishReason
from baton.step_cost import StepShape
from engine import batch as batches
from engine.batch import Batch
from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.model.decoder import LayerGroupHook
from engine.outputs import StepOutput
from engine.readout import Drawn, Reading, Readout
from engine.request import MAX_CHUNKS, Chunk, Request, RequestState
from engine.rows import Advance, Rows, Schedule, places
from engine.scheduler import Scheduler
from engine.speed import Speed
from engine.step_times import StepTimes

_log = logging.getLogger(__name__)


class PendingStep(NamedTuple):
    """A step under way."""

    batch: Batch
    reading: Reading
    advance: Advance
    num_tokens: NDArray[np.int64]  # of the requests that draw, including the token drawn
    shape: StepShape
    launched_s: float
    chunks: list[int]  # places of requests for which it computes prompt tokens, or the first step


class Steps:
    """Runs the steps of one engine."""

    def __init__(
        self,
        config: EngineConfig,
        readout: Readout,
        rows: Rows,
        scheduler: Scheduler,
        blocks: BlockManager,
        clock: Callable[[], float],
    ) -> None:
        self.readout = readout
        self.on_layer_group: LayerGroupHook | None = None  # set before the first request is added
        self.speed = Speed()
        self.times = StepTimes()
        self._config = config
        self._rows, self._scheduler, self._blocks = rows, scheduler, blocks
        self._device = torch.device(config.device)
        self._clock = clock
        self._pending: PendingStep | None = None
        self._landed_s = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether a launched step has yet to land."""
        return self._pending is not None

    @torch.inference_mode()
    def run(self, output: StepOutput) -> None:
        """Launch a step, and land one: the previous one if steps run ahead, else the same."""
        if not self._may_run_ahead():
            self._land(output)
        launched = self._launch(output)
        self._land(output)
        self._pending = launched
        if not self._runs_ahead:
            self._land(output)

    def retire(self, request: Request, output: StepOutput) -> None:
        """Stop running a request and report its end; its blocks are held if it is prefill-only, else freed."""
        request.first_token_s = request.first_token_s or self._clock()
        request.last_step = self.times.num_steps + 1  # this one is not counted yet
        if request.prefill_only:  # a transfer may still be reading its blocks
            self._scheduler.hold(request)
        else:
            self._scheduler.release(request)
        output.ended.append(request)

    @property
    def _runs_ahead(self) -> bool:
        return self._config.runs_ahead and self.on_layer_group is None  # with a hook, a launch waits for the device

    def _may_run_ahead(self) -> bool:
        """Whether the next step can be launched without the results of the one under way."""
        pending = self._pending
        if pending is None:
            return True
        row = pending.batch.rows
        return self._scheduler.can_grow and not np.count_nonzero(self._rows.waits[row] | self._rows.is_outgrown(row))

    def _launch(self, output: StepOutput) -> PendingStep | None:
        """Schedule and launch a step; None if nothing can run. An error in it ends the requests of the step only."""
        schedule, now_s = self._scheduler.schedule(), self._clock()
        if not schedule.requests:
            return None
        for request in self._scheduler.running.take_newcomers():
            request.first_scheduled_s = request.first_scheduled_s or now_s
        output.num_scheduled_tokens = schedule.total
        try:
            return self._launched(schedule, now_s)
        except Exception:  # an edge: whatever a step raises ends its requests, never the node
            self._fail_all(schedule, output)
            return None

    def _launched(self, schedule: Schedule, now_s: float) -> PendingStep:
        shape, tokens_of_rows = self._rows.shape(schedule), self.readout.tokens_of_rows
        chunks = places((schedule.num_tokens > 1) | self._rows.is_new[schedule.rows]).tolist()
        batch = batches.build(schedule, self._rows, self._config.block_size, self._device, tokens_of_rows)
        hidden = self.readout.decoder.hidden(batch, self.on_layer_group)  # [W, H]
        reading = self.readout.begin(batch, hidden)
        advance = self._rows.launch(schedule, reading.places)
        row = schedule.rows[reading.places]
        over = self._rows.is_full(row) | self._rows.prefill_only[row]
        for request in [reading.requests[i] for i in places(over).tolist()]:
            self._scheduler.running.depart(request)
        for place in places(advance.num_uncomputed == 0).tolist():
            self._scheduler.running.depart(schedule.requests[place])
        return PendingStep(batch, reading, advance, self._rows.num_tokens[row], shape, now_s, chunks)

    def _land(self, output: StepOutput) -> None:
        """Take over the results of the step under way, if there is one."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        schedule = pending.batch.schedule
        output.num_scheduled_tokens = output.num_scheduled_tokens or schedule.total
        self._rows.num_pending[schedule.rows] -= 1
        try:
            self._landed(pending, output)
        except Exception:  # an edge, as above: errors on a GPU surface here
            self._fail_all(schedule, output)
        self._scheduler.let_go()
        now_s, began_s = self._clock(), max(pending.launched_s, self._landed_s)
        self._note_chunks(pending, began_s, now_s)
        self.speed.note(pending.shape, now_s - began_s)
        self.times.note(began_s, now_s - began_s, len(schedule.requests))
        self._landed_s = now_s

    def _note_chunks(self, pending: PendingStep, start_s: float, end_s: float) -> None:
        schedule, step = pending.batch.schedule, self.times.num_steps
        for place in pending.chunks:
            chunks = schedule.requests[place].chunks
            if len(chunks) < MAX_CHUNKS:
                chunks.append(Chunk(step, start_s, end_s, int(schedule.num_tokens[place])))

    def _landed(self, pending: PendingStep, output: StepOutput) -> None:
        schedule = pending.batch.schedule
        drawn, is_sound = self.readout.finish(pending.reading, pending.batch)
        is_here = ~self._rows.has_left[schedule.rows]
        is_sound = is_sound & is_here
        are_all_sound = np.count_nonzero(is_sound) == len(is_sound)
        index = None if are_all_sound else places(is_sound[drawn.places])
        num_tokens = pending.num_tokens if index is None else pending.num_tokens[index]
        drawn = drawn if index is None else drawn.only(index)
        self._rows.land(schedule, pending.advance, drawn.places, drawn.token_ids)
        output.prompt_logprobs += pending.reading.scored
        if not are_all_sound:
            self._fail_at(places(is_here & ~is_sound), schedule, output)
        self._publish(pending.batch, is_sound)
        self._tell(drawn, schedule.rows[drawn.places], num_tokens, output)
        self._end(drawn, num_tokens, pending, is_sound, output)

    def _publish(self, batch: Batch, is_sound: NDArray[np.bool_]) -> None:
        rows, row = self._rows, batch.rows
        num_full = (batch.num_computed + batch.schedule.num_tokens) // self._config.block_size
        for place in places((num_full > rows.num_published[row]) & is_sound).tolist():
            self._blocks.publish(batch.schedule.requests[place])
        rows.num_published[row] = num_full

    def _tell(self, drawn: Drawn, row: NDArray[np.int64], num_tokens: NDArray[np.int64], output: StepOutput) -> None:
        rows = self._rows
        output.requests, output.token_ids = drawn.requests, drawn.token_ids
        output.indices = (num_tokens - rows.num_prompt_tokens[row] - 1).tolist()
        for i in places(rows.num_logprobs[row] >= 0).tolist():
            if (logprobs := drawn.logprobs[i]) is not None:
                output.logprobs[i] = logprobs
        for i in places(rows.is_new[row]).tolist():
            request = drawn.requests[i]
            request.has_begun = True
            request.first_token_s = request.first_token_s or self._clock()
            output.begun.append(request)
        rows.is_new[row] = False

    def _end(
        self,
        drawn: Drawn,
        num_tokens: NDArray[np.int64],
        pending: PendingStep,
        is_sound: NDArray[np.bool_],
        output: StepOutput,
    ) -> None:
        """Retire the requests that have drawn their last token, or that wanted none."""
        rows, schedule = self._rows, pending.batch.schedule
        row = schedule.rows[drawn.places]
        stopped, full = rows.are_stopped_by(row, drawn.token_ids), num_tokens >= rows.length_limit[row]
        for i in places(stopped | full | rows.prefill_only[row]).tolist():
            request = drawn.requests[i]
            if stopped[i] or full[i]:
                request.finish_reason = FinishReason.STOP if stopped[i] else FinishReason.LENGTH
            self.retire(request, output)
        for place in places((pending.advance.num_uncomputed == 0) & is_sound).tolist():
            schedule.requests[place].finish_reason = FinishReason.LENGTH
            self.retire(schedule.requests[place], output)

    def _fail_all(self, schedule: Schedule, output: StepOutput) -> None:
        _log.exception("a step of %d requests failed", len(schedule.requests))
        for request in schedule.requests:
            if request.state is RequestState.RUNNING:
                self._fail(request, BatonError("the node failed to compute this request"), output)

    def _fail_at(self, at: NDArray[np.int64], schedule: Schedule, output: StepOutput) -> None:
        for place in at.tolist():
            request = schedule.requests[place]
            error = request.error or NumericalError("the model produced NaN or infinite values")
            self._fail(request, error, output)

    def _fail(self, request: Request, error: BatonError, output: StepOutput) -> None:
        request.finish_reason, request.error = FinishReason.ERROR, error
        self._blocks.retract(request)
        self.retire(request, output)
