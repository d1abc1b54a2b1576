"""The two generating endpoints, from a request's body to the end of its answer.

    1. parse      (`schema`)        every field is known and bounded
    2. encode     (`served_model`)  template and tokenizer
    3. submit     (`job`)           one job per choice; the control side runs it
    4. answer     (`answer`)        in callbacks, as tokens come; this task only waits for the client to leave
    5. let go                       whatever is left is cancelled, on both legs

What it leaves to others: who may ask (`app`), which nodes serve (`dispatch`).
"""

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

import msgspec

from baton.errors import NoCapacity
from baton.request import SamplingParams
from router import http_metrics
from router.answer import Answer, StreamedAnswer, WholeAnswer
from router.answer_format import ChatFormat, CompletionFormat, Format
from router.choice import Choice
from router.exchange import Exchange
from router.job import Handle, Job, Sink
from router.prompt_part import PromptPart
from router.sampling import check_prompt, choice_seed, num_logprobs, sampling_params, stops
from router.schema import ChatBody, CompletionBody, parse_chat, parse_completion, prompts_of
from router.served_model import ServedModel


class Facts(Protocol):
    """What the nodes of a fleet agree on."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together."""


class Dispatch(Protocol):
    """The control side, as far as the HTTP side needs it."""

    @property
    def ready(self) -> bool:
        """Whether a request could be served now."""

    @property
    def facts(self) -> Facts | None:
        """None until the first node has been found."""

    def submit(self, job: Job, sink: Sink) -> Handle:
        """Take a job on; raises a BatonError where there are too many."""


@dataclass(frozen=True)
class Plan:
    """What is to be generated: for each prompt `n` choices, which differ in their seed."""

    body: ChatBody | CompletionBody
    form: Format
    prompts: list[list[int]]
    samplings: list[SamplingParams]

    @property
    def n(self) -> int:
        """Choices of each prompt."""
        return self.body.n or 1


class Generator:
    """Serves both endpoints."""

    def __init__(self, model: ServedModel, dispatch: Dispatch, request_timeout_s: float) -> None:
        self._model = model
        self._dispatch = dispatch
        self._request_timeout_s = request_timeout_s

    @property
    def max_model_len(self) -> int:
        """Tokens of a request; 0 where nobody names a limit."""
        facts = self._dispatch.facts
        return min(filter(None, (self._model.facts.max_model_len, facts.max_model_len if facts else 0)), default=0)

    def deadline_s(self, exchange: Exchange) -> float:
        """When a request has to be answered, on the monotonic clock."""
        return exchange.arrived_s + self._request_timeout_s

    def submit(self, job: Job, sink: Sink) -> Handle:
        """Hand a job to the control side; raises a BatonError where there are too many."""
        return self._dispatch.submit(job, sink)

    async def chat(self, exchange: Exchange, cache_salt: bytes) -> None:
        """POST /v1/chat/completions."""
        body = parse_chat(await exchange.read_body())
        self._model.check_name(body.model)
        exchange.model = body.model
        limit = self.max_model_len
        token_ids = await self._model.encode_chat(body.messages, limit)
        check_prompt(token_ids, self._model.facts, limit, "messages")
        others = [PromptPart(token_ids, self._model.token_texts)] * ((body.n or 1) - 1)
        parts = [self._part(body, token_ids), *others]  # the prompt is scored once, for the whole answer
        form = ChatFormat(_answer_id("chatcmpl"), body.model, int(time.time()), parts, stream_usage=_wants_usage(body))
        await self._answer(exchange, self._plan(body, form, [token_ids]), cache_salt)

    async def completion(self, exchange: Exchange, cache_salt: bytes) -> None:
        """POST /v1/completions."""
        body = parse_completion(await exchange.read_body())
        self._model.check_name(body.model)
        exchange.model = body.model
        given, limit = prompts_of(body), self.max_model_len
        prompts = []
        for prompt in given:
            token_ids = prompt if isinstance(prompt, list) else await self._model.encode_text(prompt, limit)
            check_prompt(token_ids, self._model.facts, limit, "prompt", num_output_tokens=int(body.max_tokens != 0))
            prompts.append(token_ids)
        parts = [
            self._part(body, token_ids, self._echo(prompt) if body.echo else None)
            for token_ids, prompt in zip(prompts, given, strict=True)
            for _ in range(body.n or 1)
        ]
        form = CompletionFormat(
            _answer_id("cmpl"), body.model, int(time.time()), parts, stream_usage=_wants_usage(body)
        )
        await self._answer(exchange, self._plan(body, form, prompts), cache_salt)

    def _echo(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._model.tokenizer.decode(prompt)

    def _part(self, body: ChatBody | CompletionBody, token_ids: list[int], echo: str | None = None) -> PromptPart:
        return PromptPart(
            token_ids,
            self._model.token_texts,
            echo=echo or "",
            num_echo_logprobs=-1 if echo is None else num_logprobs(body),
            num_prompt_logprobs=-1 if body.prompt_logprobs is None else body.prompt_logprobs,
        )

    def _plan(self, body: ChatBody | CompletionBody, form: Format, prompts: list[list[int]]) -> Plan:
        limit, facts = self.max_model_len, self._model.facts
        return Plan(body, form, prompts, [sampling_params(body, len(prompt), facts, limit) for prompt in prompts])

    async def _answer(self, exchange: Exchange, plan: Plan, cache_salt: bytes) -> None:
        kind = StreamedAnswer if plan.body.stream else WholeAnswer
        answer = kind(exchange, plan.form, sum(map(len, plan.prompts)), plan.n)
        try:
            self._submit(exchange, plan, answer, cache_salt)
            await exchange.gone()
        except asyncio.CancelledError:
            answer.on_failure(NoCapacity("the router is shutting down"))
        finally:
            exchange.left = exchange.sender.broken or not answer.ended
            answer.drop()
            self._record(exchange, answer)

    def _submit(self, exchange: Exchange, plan: Plan, answer: Answer, cache_salt: bytes) -> None:
        deadline_s = self.deadline_s(exchange)
        jobs: list[tuple[Job, Choice]] = []
        for token_ids, sampling in zip(plan.prompts, plan.samplings, strict=True):
            for i in range(plan.n):
                seeded = msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, i)) if i else sampling
                choice = self._choice(len(jobs), answer, plan, seeded)
                answer.choices.append(choice)
                job_id = f"{exchange.request_id}-{secrets.token_hex(8)}"  # the client's id alone would not be unique
                job = Job(
                    request_id=job_id,
                    token_ids=token_ids,
                    sampling=seeded,
                    prompt_work=plan.form.prompts[choice.index].work(seeded.max_tokens),
                    cache_salt=cache_salt,
                    deadline_s=deadline_s,
                )
                jobs.append((job, choice))
        for job, choice in jobs:
            choice.handle = self._dispatch.submit(job, choice)

    def _choice(self, index: int, answer: Answer, plan: Plan, sampling: SamplingParams) -> Choice:
        at_start = isinstance(plan.body, ChatBody)
        return Choice(index, answer, self._model.token_texts, sampling, stops(plan.body), at_start=at_start)

    def _record(self, exchange: Exchange, answer: Answer) -> None:
        counts = answer.counts()
        http_metrics.PROMPT_TOKENS.inc(counts.num_prompt_tokens)
        http_metrics.GENERATION_TOKENS.inc(counts.num_output_tokens)
        http_metrics.CACHE_HIT_TOKENS.inc(counts.num_cached_tokens)
        if answer.error is not None:
            exchange.status = answer.error.status
        exchange.timings = answer.timings()
        exchange.num_tokens = (counts.num_prompt_tokens, counts.num_output_tokens)


def _wants_usage(body: ChatBody | CompletionBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _answer_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"
