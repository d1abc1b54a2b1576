"""A request in flight: the job, the tokens sent so far, and the sink that receives them.

This is the authoritative state of a stream. Nodes come and go, and any of them can continue from `token_ids`.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Coroutine
from typing import Any

from baton.errors import BatonError, Cancelled
from baton.process import tasks
from baton.request import FinishReason
from baton.telemetry.timeline import Timeline
from baton.token_ids import packed
from router.job import TIMINGS, Job, PromptResult, Sink, TokenLogprobs, Usage

_log = logging.getLogger(__name__)


class Paused(Cancelled):
    """The attempt was ended by `Running.pause`, until the client has caught up."""


class Running:
    """One request in flight. For the HTTP side it is the job's handle (`job.Handle`)."""

    def __init__(self, job: Job, sink: Sink, key: int) -> None:
        self.job = job
        self.key = key
        self.usage = Usage(num_prompt_tokens=len(job.token_ids), num_attempts=0, timings={})
        self.output: list[int] = []
        self._prompt = packed(job.token_ids)
        self.wants_prompt = job.prompt_work is not None  # whether the prompt work is still to be done
        self.troubled: set[str] = set()  # ids of nodes with which a transfer of this request has failed
        self.timeline = Timeline(job.request_id, traceparent=job.traceparent)
        self._sink: Sink | None = sink
        self._submitted_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # fires at its deadline
        self.is_late = False
        self.is_waiting = True  # whether its nodes are still to be chosen
        self.fail_attempt: Callable[[BatonError], None] | None = None  # ends the current attempt
        self.computed_by = ""  # id of the node that did the prompt work, and so has the prompt's blocks
        self.num_failed_transfers = 0
        self._pause: asyncio.Event | None = None  # set when the pause ends

    @property
    def token_ids(self) -> "array[int]":
        """Prompt and output so far, from which the next attempt continues. Do not modify it."""
        return self._prompt + packed(self.output) if self.output else self._prompt

    @property
    def num_tokens(self) -> int:
        """Length of `token_ids`."""
        return len(self.job.token_ids) + len(self.output)

    @property
    def num_tokens_left(self) -> int:
        """Output tokens still allowed."""
        return self.job.sampling.max_tokens - len(self.output)

    @property
    def age_s(self) -> float:
        """Seconds since the request was submitted."""
        return time.monotonic() - self._submitted_at

    @property
    def reached_end(self) -> FinishReason | None:
        """The finish reason if the output is complete already: a node may be lost before it reports the end."""
        if self.wants_prompt:
            return None
        if self.num_tokens_left <= 0:
            return FinishReason.LENGTH
        if self.output and self.output[-1] in self.job.sampling.stop_token_ids:
            return FinishReason.STOP
        return None

    def start(self, life: Coroutine[Any, Any, None], on_end: Callable[[], object]) -> None:
        """Run `life`, the request's task, until its deadline; then call `on_end`."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(life)
        self._timer = loop.call_later(self.job.deadline_s - time.monotonic(), self._expire)
        self._task.add_done_callback(lambda _: self._ended(on_end))

    async def stop(self) -> None:
        """Cancel the request's task, and wait until it has ended."""
        if self._task is not None:
            await tasks.end(self._task)

    def cancel(self) -> None:
        """See `job.Handle`."""
        self._sink = None
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        """See `job.Handle`. The current attempt fails; the output so far is all that the next one needs."""
        self._pause = self._pause or asyncio.Event()
        if self.fail_attempt is not None and not self.wants_prompt:
            self.fail_attempt(Paused("the client reads too slowly"))

    def resume(self) -> None:
        """See `job.Handle`. The request is placed again."""
        if self._pause is not None:
            self._pause.set()
            self._pause = None

    async def resumed(self) -> None:
        """Wait until the request is not paused."""
        while self._pause is not None:
            await self._pause.wait()

    def check_wanted(self) -> None:
        """Raise CancelledError if the request was cancelled or is late: the task's own cancellation may have been lost.

        See `process.tasks` for how that happens.
        """
        if self._sink is None or self.is_late:
            raise asyncio.CancelledError

    def emit_prompt(self, result: PromptResult) -> None:
        """Pass the result of the prompt work to the sink."""
        self.wants_prompt = False
        if self._sink is None:
            return
        try:
            self._sink.on_prompt(result)
        except Exception:  # an edge: this request fails, others continue
            self._give_up()

    def emit(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """Pass the next output tokens to the sink."""
        self.output += tokens
        if self._sink is None:
            return
        try:
            self._sink.on_tokens(tokens, logprobs)
        except Exception:  # an edge: this request fails, the others in the batch continue
            self._give_up()

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        """Record what a node reports. If several attempts report the same value, the first one counts."""
        if num_cached_tokens and not self.usage.num_cached_tokens:
            self.usage.num_cached_tokens = min(num_cached_tokens, self.usage.num_prompt_tokens)
        known = timings | self.usage.timings
        self.usage.timings = {name: known[name] for name in TIMINGS if name in known}

    def finish(self, reason: FinishReason) -> None:
        """Make the last call on the sink: the request has finished."""
        self.usage.num_output_tokens = len(self.output)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            sink.on_finish(reason, self.usage)
        except Exception:  # an edge: the client's answer is incomplete, and it would wait for ever
            _log.exception("a sink failed", extra={"request_id": self.job.request_id})
            sink.on_error(BatonError("internal error"))

    def fail(self, error: BatonError) -> None:
        """Make the last call on the sink: the request has failed."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_error(error)

    def _expire(self) -> None:
        self.is_late = True
        if self._task is not None:
            self._task.cancel()

    def _ended(self, on_end: Callable[[], object]) -> None:
        self.timeline.end()
        self._task = None  # breaks a cycle: the frames of a cancelled task refer to the request
        if self._timer is not None:
            self._timer.cancel()
        on_end()

    def _give_up(self) -> None:
        """End the request after its sink has raised. The client gets an error, or it would wait for ever."""
        _log.exception("a sink failed", extra={"request_id": self.job.request_id})
        self.fail(BatonError("internal error"))
        self.cancel()
