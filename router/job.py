"""The interface between the router's HTTP side and its control side: jobs go down, calls on a sink come back.

The HTTP side deals with text: templates, detokenization, stop strings, SSE. The control side deals with nodes:
placement, attempts, deadlines. A completion with n > 1 is n jobs, each with its own seed.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from baton.errors import BatonError
from baton.request import FinishReason, SamplingParams
from baton.v1.prompt_pb2 import PromptLogprobs
from baton.v1.types_pb2 import TokenLogprobs

__all__ = ["Handle", "Job", "PromptLogprobs", "PromptResult", "PromptWork", "Sink", "TokenLogprobs", "Usage"]


class PromptWork(msgspec.Struct, frozen=True, kw_only=True):
    """What to compute from a prompt besides output tokens, or instead of them."""

    num_logprobs: int = -1  # -1: none; n: of each prompt token, and of the n likeliest tokens at its position
    embeds: bool = False
    dimensions: int = 0  # of the embedding; 0: all


class PromptResult(msgspec.Struct, frozen=True):
    """The result of a `PromptWork`. The parts of the log-probabilities are in order, without gaps, from position 1."""

    logprobs: list[PromptLogprobs]
    embedding: bytes = b""  # fp32, little-endian


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One choice to generate or, with max_tokens 0, only work on its prompt."""

    request_id: str
    token_ids: Sequence[int]  # the prompt
    sampling: SamplingParams
    prompt_work: PromptWork | None = None  # done first, on a single node
    cache_salt: bytes = b""
    tenant: str = ""  # whose share of the queue it counts towards
    priority: int = 1  # index into `admission.CLASSES`
    max_ttft_s: float = 0.0  # refuse the job if its first token is predicted to take longer; 0: no limit
    deadline_s: float  # on the monotonic clock (time.monotonic)
    traceparent: str = ""  # W3C; empty if the request is not traced


TIMINGS = ("queue_s", "prefill_s", "transfer_s", "first_decode_s")  # a request's phases, in order


class Usage(msgspec.Struct, kw_only=True):
    """What a job has used. Tokens are counted once, however many attempts were needed."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0  # prompt tokens that the first successful prefill found in a cache
    num_output_tokens: int = 0
    num_attempts: int = 1
    timings: dict[str, float] = {}  # seconds: those of TIMINGS that are known, in their order


class Sink(Protocol):
    """Receives a job's outcome. Called in the event loop, never concurrently; must not block and must not raise.

    The calls are: one `on_prompt` if the job has prompt work, any number of `on_tokens`, then exactly one `on_finish`
    or `on_error`. No call follows a `Handle.cancel`.
    """

    def on_prompt(self, result: PromptResult) -> None:
        """The prompt work is done."""

    def on_tokens(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """Take the next output tokens: in order and each exactly once, regardless of failovers.

        `logprobs` has one entry per token if the job asked for them, and is None otherwise.
        """

    def on_finish(self, reason: FinishReason, usage: Usage) -> None:
        """All tokens have been delivered, including a stop token or end of sequence."""

    def on_error(self, error: BatonError) -> None:
        """The job has failed; `error.message` is fit for a client."""


class Handle(Protocol):
    """A submitted job."""

    usage: Usage
    """What is known so far; for a job that the HTTP side itself ends, at a stop string."""

    def cancel(self) -> None:
        """Drop the job on all nodes. Idempotent, and harmless on a job that has ended."""

    def pause(self) -> None:
        """Take the job off its nodes until `resume`; tokens in flight are still delivered. Harmless after the end."""

    def resume(self) -> None:
        """Continue where `pause` left off. Harmless after the end."""
