"""Converts a body to SamplingParams, using facts of the model: its limits, vocabulary and end of sequence."""

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from baton.errors import InvalidRequest
from baton.model_dir import ModelFacts
from baton.request import Grammar, SamplingParams
from router.openai.body import too_long
from router.openai.chat_schema import ChatBody
from router.openai.completion_schema import CompletionBody
from router.openai.schema import CommonBody

_DEFAULT_COMPLETION_TOKENS = 16
_MAX_TOKENS_WITHOUT_LIMIT = 2**20  # if neither model nor fleet has a limit
_MASK = 2**64 - 1
Value = TypeVar("Value")


def check_prompt(token_ids: Sequence[int], max_model_len: int, param: str, *, num_output_tokens: int = 1) -> None:
    """Raise InvalidRequest for an empty prompt, or one that leaves no room for `num_output_tokens`.

    `max_model_len` 0 means no limit. Token ids from clients must also be checked by `check_ids`.
    """
    if not token_ids:
        raise InvalidRequest("The prompt is empty", param=param)
    if max_model_len and len(token_ids) + num_output_tokens > max_model_len:
        lacks_room = ", which leaves no room for an answer" if num_output_tokens else ""
        raise too_long(max_model_len, f"the prompt has {len(token_ids)}{lacks_room}", param)


def check_ids(token_ids: Iterable[int], facts: ModelFacts, param: str) -> None:
    """Raise InvalidRequest for token ids that the model does not have."""
    if facts.vocab_size and max(token_ids, default=0) >= facts.vocab_size:  # `any` takes twice as long
        raise InvalidRequest(f"Token ids must be below {facts.vocab_size}", param=param)


def sampling_params(
    body: ChatBody | CompletionBody,
    num_prompt_tokens: int,
    facts: ModelFacts,
    max_model_len: int,
    grammar: Grammar | None,
) -> SamplingParams:
    """Return the parameters for a prompt's first choice; the others differ in their seeds. Raises InvalidRequest.

    `grammar`: what the output must match, if anything.
    """
    max_tokens = _max_tokens(body, num_prompt_tokens, max_model_len)
    if body.stop_token_ids:
        check_ids(body.stop_token_ids, facts, "stop_token_ids")
    if body.logit_bias:
        check_ids(body.logit_bias, facts, "logit_bias")
    if grammar is not None and body.ignore_eos:
        problem = "ignore_eos cannot be combined with a form of output, which has an end"
        raise InvalidRequest(problem, param="ignore_eos")
    default = facts.sampling
    eos = () if body.ignore_eos else facts.eos_token_ids
    return SamplingParams(
        temperature=_or(body.temperature, default.temperature),
        top_p=_or(body.top_p, default.top_p),
        top_k=max(0, _or(body.top_k, default.top_k)),
        min_p=_or(body.min_p, default.min_p),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=_or(body.repetition_penalty, default.repetition_penalty),
        seed=int.from_bytes(os.urandom(8)) if body.seed is None else body.seed & _MASK,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(sorted({*(body.stop_token_ids or ()), *eos})),
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=num_logprobs(body),
        logit_bias=body.logit_bias or {},
        grammar=grammar,
    )


def num_logprobs(body: ChatBody | CompletionBody) -> int:
    """Return how many of the likeliest tokens to report for each; -1: no log-probabilities at all."""
    if isinstance(body, ChatBody):
        return (body.top_logprobs or 0) if body.logprobs else -1
    return _or(body.logprobs, -1)


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of a prompt's choice: the request's own for the first, splitmix64 of it for the others."""
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def stops(body: CommonBody) -> tuple[str, ...]:
    """Return the stop strings."""
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _max_tokens(body: ChatBody | CompletionBody, num_prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - num_prompt_tokens if max_model_len else _MAX_TOKENS_WITHOUT_LIMIT
    if isinstance(body, ChatBody):
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        asked = getattr(body, name)
        asked = room if asked is None else asked
    else:
        name, asked = "max_tokens", _or(body.max_tokens, min(room, _DEFAULT_COMPLETION_TOKENS))
    if asked > room:
        raise too_long(max_model_len, f"the prompt has {num_prompt_tokens} and {name} is {asked}", name)
    if (body.min_tokens or 0) > asked:
        raise InvalidRequest(f"min_tokens is above max_tokens, which is {asked}", param="min_tokens")
    return int(asked)


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
