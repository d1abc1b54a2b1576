"""Where the HTTP side of the router and its control side meet: a job goes down, calls on a sink come back.

The HTTP side owns text (templates, tokens to text, stop strings, SSE); the control side owns nodes (which, how often,
until when). A completion with n > 1 is n jobs, each with its own seed.
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
    """What is wanted of a prompt besides output tokens, or instead of them."""

    num_logprobs: int = -1  # -1: none; n: of each prompt token, and of the n likeliest in its place
    embeds: bool = False
    dimensions: int = 0  # of the embedding; 0 is all


class PromptResult(msgspec.Struct, frozen=True):
    """The outcome. Parts of the log-probabilities follow one another without gaps, from position 1 on."""

    logprobs: list[PromptLogprobs]
    embedding: bytes = b""  # fp32, little-endian


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One choice to generate, or with max_tokens 0 only work on its prompt."""

    request_id: str
    token_ids: Sequence[int]  # the prompt
    sampling: SamplingParams
    prompt_work: PromptWork | None = None  # done first, on one node alone
    cache_salt: bytes = b""
    tenant: str = ""  # whose tokens it counts for, in line
    priority: int = 1  # index into `admission.CLASSES`
    max_ttft_s: float = 0.0  # rather refused than answered later; 0: no limit
    deadline_s: float  # on the monotonic clock (time.monotonic)
    traceparent: str = ""  # W3C; empty where nobody traces


class Usage(msgspec.Struct, kw_only=True):
    """What a finished job took. Counts are of the request, however many attempts it needed."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0  # prompt tokens that the first successful prefill found in a cache
    num_output_tokens: int = 0
    num_attempts: int = 1
    timings: dict[str, float] = {}  # seconds: queue_s, prefill_s, transfer_s, first_decode_s, as far as known


class Sink(Protocol):
    """Receives a job's outcome. Called in the event loop, never concurrently; must not block and must not raise.

    One `on_prompt` where the job has prompt work, any number of `on_tokens`, then exactly one of `on_finish` and
    `on_error`. After `Handle.cancel` returns, nothing.
    """

    def on_prompt(self, result: PromptResult) -> None:
        """The prompt work is done."""

    def on_tokens(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """The next output tokens, in order and each once, whatever failed over in between.

        `logprobs` has one entry per token where the job asked for them, and is None where it did not.
        """

    def on_finish(self, reason: FinishReason, usage: Usage) -> None:
        """The last token has been delivered. A stop token or end of sequence is among the tokens delivered."""

    def on_error(self, error: BatonError) -> None:
        """The job ends without having finished; `error.message` is fit for a client."""


class Handle(Protocol):
    """A submitted job."""

    usage: Usage
    """As far as known: of use where the HTTP side itself ends the job, at a stop string."""

    def cancel(self) -> None:
        """Drop the job wherever it is, on both legs. Idempotent, and harmless on a job that has ended."""

    def pause(self) -> None:
        """Let go of the nodes until `resume`; tokens that are under way still come. As harmless."""

    def resume(self) -> None:
        """Go on where `pause` left off. As harmless."""
