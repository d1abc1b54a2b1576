"""A request in flight: what was asked, what was sent, and the sink that it goes to.

The truth of a stream is here: nodes come and go, and any of them can go on from `token_ids`.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable

from baton.errors import BatonError, Cancelled
from baton.request import FinishReason
from baton.telemetry.timeline import Timeline, Value
from baton.token_ids import packed
from router.job import Job, PromptResult, Sink, TokenLogprobs, Usage

_log = logging.getLogger(__name__)


class Paused(Cancelled):
    """The request's own wish: its client has to catch up first."""


class Running:
    """The request, and the handle of it that the HTTP side gets (`job.Handle`)."""

    def __init__(self, job: Job, sink: Sink, key: int) -> None:
        self.job = job
        self.key = key
        self.usage = Usage(num_prompt_tokens=len(job.token_ids), num_attempts=0, timings={})
        self.output: list[int] = []
        self._prompt = packed(job.token_ids)
        self.wants_prompt = job.prompt_work is not None  # that work is still to be done
        self.troubled: set[str] = set()  # nodes between which a transfer of this request has failed
        self.timeline = Timeline(job.request_id, traceparent=job.traceparent)
        self._sink: Sink | None = sink
        self._submitted_at = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None  # to its deadline
        self.is_late = False
        self.is_waiting = True  # for nodes to be chosen
        self.fail_attempt: Callable[[BatonError], None] | None = None  # ends the one that is under way
        self.computed_by = ""  # the node that has done the prompt's work, and holds its blocks
        self.num_failed_transfers = 0
        self._pause: asyncio.Event | None = None  # set at its end

    @property
    def token_ids(self) -> "array[int]":
        """Prompt and output so far, with which the next attempt begins. Not to be changed."""
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
        """Since it was submitted."""
        return time.monotonic() - self._submitted_at

    @property
    def reached_end(self) -> FinishReason | None:
        """Why the tokens sent so far are all there is, where a node was lost before it could say so."""
        if self.wants_prompt:
            return None
        if self.num_tokens_left <= 0:
            return FinishReason.LENGTH
        if self.output and self.output[-1] in self.job.sampling.stop_token_ids:
            return FinishReason.STOP
        return None

    def cancel(self) -> None:
        """Drop the request; its sink hears nothing any more."""
        self._sink = None
        if self.task is not None:
            self.task.cancel()

    def expire(self) -> None:
        """End the request: its deadline has come."""
        self.is_late = True
        if self.task is not None:
            self.task.cancel()

    def pause(self) -> None:
        """Take it off its nodes: what it has sent so far is all that is needed to go on."""
        self._pause = self._pause or asyncio.Event()
        if self.fail_attempt is not None and not self.wants_prompt:
            self.fail_attempt(Paused("the client reads too slowly"))

    def resume(self) -> None:
        """Let it be placed again."""
        if self._pause is not None:
            self._pause.set()
            self._pause = None

    async def resumed(self) -> None:
        """Return as soon as it is not paused."""
        while self._pause is not None:
            await self._pause.wait()

    def check_wanted(self) -> None:
        """Raise CancelledError where nobody waits for the outcome, or it is too late: a cancellation can get lost
        (`process.tasks`)."""
        if self._sink is None or self.is_late:
            raise asyncio.CancelledError

    def emit_prompt(self, result: PromptResult) -> None:
        """Hand the sink what was wanted of the prompt."""
        self.wants_prompt = False
        if self._sink is None:
            return
        try:
            self._sink.on_prompt(result)
        except Exception:  # the edge of this request: the others go on
            self._give_up()

    def emit(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """Hand the sink the next output tokens."""
        self.output += tokens
        if self._sink is None:
            return
        try:
            self._sink.on_tokens(tokens, logprobs)
        except Exception:  # the edge of this request: the others in the batch go on
            self._give_up()

    def note(self, num_cached_tokens: int, **timings: float) -> None:
        """What a node reports of its part. Of several attempts the first one counts."""
        if num_cached_tokens and not self.usage.num_cached_tokens:
            self.usage.num_cached_tokens = min(num_cached_tokens, self.usage.num_prompt_tokens)
        self.usage.timings = timings | self.usage.timings

    def mark(self, name: str, **attributes: Value) -> None:
        """Note in its timeline that this happens now."""
        self.timeline.mark(name, **attributes)

    def finish(self, reason: FinishReason) -> None:
        """The last call on the sink."""
        self.usage.num_output_tokens = len(self.output)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            sink.on_finish(reason, self.usage)
        except Exception:  # an edge: its client has no whole answer, and would wait for ever
            _log.exception("a sink failed", extra={"request_id": self.job.request_id})
            sink.on_error(BatonError("internal error"))

    def fail(self, error: BatonError) -> None:
        """The last call on the sink."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_error(error)

    def _give_up(self) -> None:
        """The sink has failed. Its client hears of that, else it would wait for ever."""
        _log.exception("a sink failed", extra={"request_id": self.job.request_id})
        self.fail(BatonError("internal error"))
        self.cancel()
