"""Body of POST /v1/completions."""

import contextlib
from array import array
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from baton.token_ids import packed
from router.openai.schema import (
    MAX_CHOICES,
    MAX_INT32,
    MAX_TOP_LOGPROBS,
    CommonBody,
    NoText,
    TokenId,
    check_common,
    decode,
    unsupported,
)


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """Of POST /v1/completions. A prompt is a text or token ids; several make several choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None  # 0: only the prompt is worked on
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None  # only as many as n
    suffix: NoText | None = None


Decoder = msgspec.json.Decoder[CompletionBody]
_COMPLETION = Decoder(CompletionBody)


def decoder(vocab_size: int) -> Decoder:
    """For a model of so many tokens (0: unknown). Larger ids are found while a body is read, which takes no time."""
    if not vocab_size:
        return _COMPLETION
    token_id = Annotated[int, Meta(ge=0, lt=vocab_size)]
    prompt = str | Annotated[list[str | token_id | list[token_id]], Meta(min_length=1)]
    return Decoder(
        msgspec.defstruct("CompletionBody", [("prompt", prompt)], bases=(CompletionBody,), frozen=True, kw_only=True)
    )


def parse_completion(data: bytes, reader: Decoder = _COMPLETION) -> CompletionBody:
    """Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(reader, data)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of")
    check_common(body)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise InvalidRequest("max_tokens: 0 needs echo or prompt_logprobs", param="max_tokens")
    return body


def prompts_of(body: CompletionBody) -> "list[str | array[int]]":
    """The prompts, each a text or token ids."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    kind = type(prompt[0])
    if kind is int:
        with contextlib.suppress(TypeError):  # asking each of 30,000 for its type takes three times as long
            return [packed(prompt)]
    elif kind in (str, list) and set(map(type, prompt)) == {kind}:
        if len(prompt) * (body.n or 1) > MAX_CHOICES:
            raise InvalidRequest(f"At most {MAX_CHOICES} choices: prompts times n", param="prompt")
        return prompt if kind is str else list(map(packed, prompt))
    raise InvalidRequest("Expected texts, token ids or lists of token ids, not a mixture", param="prompt")
