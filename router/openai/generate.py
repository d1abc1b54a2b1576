"""The life of a generating request on the HTTP side. Steps 3 to 5 are in this file, for all endpoints.

    1. parse      (`chat`, `responses`, `completions`)  check that every field is known and bounded
    2. encode     (`served_model`)  render the template, tokenize
    3. submit     (`job`)           one job per choice, which the control side runs
    4. answer     (`answer`)        in callbacks, as tokens come; this task only waits for the client to leave
    5. clean up                     cancel whatever still runs

`app` has authenticated the request before; `dispatch` chooses the nodes.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Protocol

import msgspec

from baton.errors import NoCapacity
from baton.native.json_fields import Field
from baton.request import SamplingParams
from baton.text.detokenizer import TokenTexts
from router.http import metrics as http_metrics
from router.http.exchange import Exchange
from router.job import Handle, Job, PromptWork, Sink
from router.openai import field_limits
from router.openai.answer import Answer, StreamedAnswer, WholeAnswer
from router.openai.answer_format import Format
from router.openai.choice import Choice
from router.openai.sampling import choice_seed
from router.openai.served_model import ServedModel

JOBS_AT_ONCE = 8  # submitted per turn of the event loop
_log = logging.getLogger(__name__)


class Facts(Protocol):
    """What all nodes of the served model have in common."""

    @property
    def max_model_len(self) -> int:
        """The limit on prompt and output tokens together."""


class Dispatch(Protocol):
    """The control side, as seen by the HTTP side."""

    @property
    def ready(self) -> bool:
        """Whether a request could be served now."""

    @property
    def facts(self) -> Facts | None:
        """None until the first node has been found."""

    def submit(self, job: Job, sink: Sink) -> Handle:
        """Start a job. Raises a BatonError if there are too many."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate: for each prompt `n` choices, which differ in their seeds."""

    form: Format
    prompts: Sequence[Sequence[int]]
    samplings: Sequence[SamplingParams]  # one per prompt
    texts: TokenTexts
    n: int = 1
    stream: bool = False
    stops: tuple[str, ...] = ()
    at_start: bool = True  # the output stands alone, like a message, and does not continue a prompt


class Generator:
    """What all generating endpoints share."""

    def __init__(
        self, model: ServedModel, dispatch: Dispatch, request_timeout_s: float, *, logs_prompts: bool = False
    ) -> None:
        """`logs_prompts`: write prompts to the log. Otherwise they never appear there."""
        self._logs_prompts = logs_prompts
        self.model = model
        self._dispatch = dispatch
        self._request_timeout_s = request_timeout_s

    @property
    def max_model_len(self) -> int:
        """The limit on prompt and output tokens of a request; 0: none. Until a node is found, it is config.json's."""
        facts, default = self._dispatch.facts, self.model.facts.max_model_len
        return min(filter(None, (self.model.max_model_len, facts.max_model_len)), default=default) if facts else default

    def check_body(self, data: bytes) -> Sequence[Field] | None:
        """Raise InvalidRequest for a body that is too large to be valid. Returns what `field_limits.check` does."""
        return field_limits.check(data, self.max_model_len)

    def job(
        self, exchange: Exchange, token_ids: Sequence[int], sampling: SamplingParams, prompt_work: PromptWork | None
    ) -> Job:
        """Make one of a request's jobs, with the priority, cache salt and TTFT limit of its tenant."""
        tenant = exchange.account.tenant
        return Job(
            request_id=exchange.part_id(),
            token_ids=token_ids,
            sampling=sampling,
            prompt_work=prompt_work,
            cache_salt=tenant.salt,
            tenant=tenant.name,
            priority=tenant.priority,
            max_ttft_s=tenant.max_ttft_s,
            deadline_s=exchange.arrived_s + self._request_timeout_s,
            traceparent=exchange.timeline.traceparent,
        )

    def submit(self, job: Job, sink: Sink) -> Handle:
        """Submit a job to the control side. Raises a BatonError if there are too many."""
        return self._dispatch.submit(job, sink)

    async def answer(self, exchange: Exchange, plan: Plan) -> None:
        """Run the plan's jobs and write the answer. Returns when it is complete, or the client has left."""
        num_prompt_tokens = sum(map(len, plan.prompts))
        await exchange.account.admit(exchange.model, num_prompt_tokens)
        kind = StreamedAnswer if plan.stream else WholeAnswer
        answer = kind(exchange, plan.form, num_prompt_tokens, plan.n)
        exchange.timeline.add("parse and tokenize", exchange.arrived_s, num_prompt_tokens=num_prompt_tokens)
        if self._logs_prompts:
            for token_ids in plan.prompts:
                text = self.model.tokenizer.decode(list(token_ids))
                _log.info("prompt", extra={"request_id": exchange.request_id, "fields": {"prompt": text}})
        try:
            await self._submit(answer, self._jobs(exchange, plan, answer))
            await exchange.gone()
        except asyncio.CancelledError:
            answer.on_failure(NoCapacity("the router is shutting down"))
        finally:
            exchange.left = exchange.sender.broken or not answer.ended
            answer.drop()
            self._record(exchange, answer)
            answer.choices.clear()  # breaks a cycle: they refer to the answer

    async def _submit(self, answer: Answer, jobs: Sequence[tuple[Job, Choice]]) -> None:
        """Submit a few jobs per turn of the event loop, since each takes half a millisecond of it."""
        for number, (job, choice) in enumerate(jobs, 1):
            choice.handle = self._dispatch.submit(job, choice)
            if number % JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
                if answer.ended:
                    return

    def _jobs(self, exchange: Exchange, plan: Plan, answer: Answer) -> list[tuple[Job, Choice]]:
        jobs: list[tuple[Job, Choice]] = []
        for token_ids, sampling in zip(plan.prompts, plan.samplings, strict=True):
            max_tokens = exchange.account.max_tokens(sampling.max_tokens)
            if max_tokens != sampling.max_tokens:
                sampling = msgspec.structs.replace(sampling, max_tokens=max_tokens)
            for i in range(plan.n):
                seeded = msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, i)) if i else sampling
                choice = Choice(len(jobs), answer, plan.texts, seeded, plan.stops, at_start=plan.at_start)
                answer.choices.append(choice)
                work = plan.form.prompts[choice.index].work(seeded.max_tokens)
                jobs.append((self.job(exchange, token_ids, seeded, work), choice))
        return jobs

    def _record(self, exchange: Exchange, answer: Answer) -> None:
        counts = answer.counts()
        http_metrics.PROMPT_TOKENS.inc(counts.num_prompt_tokens)
        http_metrics.GENERATION_TOKENS.inc(counts.num_output_tokens)
        http_metrics.CACHE_HIT_TOKENS.inc(counts.num_cached_tokens)
        if answer.error is not None:
            exchange.status, exchange.error_code = answer.error.status, answer.error.code
        exchange.account.used(
            counts.num_prompt_tokens, counts.num_cached_tokens, counts.num_output_tokens, is_good=answer.error is None
        )
        exchange.timings = answer.timings()
        exchange.num_cached_tokens = counts.num_cached_tokens
        exchange.num_tokens = (counts.num_prompt_tokens, counts.num_output_tokens)


def answer_id(prefix: str) -> str:
    """Mint the id of an answer."""
    return f"{prefix}-{os.urandom(12).hex()}"
