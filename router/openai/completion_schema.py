"""The body of POST /v1/completions."""

import contextlib
from array import array
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from baton.token_ids import packed
from router.http.exchange import Exchange
from router.openai import id_lists
from router.openai.body import unsupported
from router.openai.schema import MAX_CHOICES, MAX_INT32, MAX_TOP_LOGPROBS, CommonBody, NoText, TokenId, check_common


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """The body of POST /v1/completions. A prompt is a text or token ids; several prompts make several choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None  # 0: only prompt work
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None  # must equal n
    suffix: NoText | None = None


class Reader:
    """Parses bodies for one model."""

    def __init__(self, vocab_size: int = 0) -> None:
        """Token ids must be below `vocab_size` (0: unknown), which the decoder checks at no extra cost."""
        token_id: Any = Annotated[int, Meta(ge=0, lt=vocab_size)] if vocab_size else TokenId
        prompt: Any = str | Annotated[list[str | token_id | list[token_id]], Meta(min_length=1)]
        kind: Any = msgspec.defstruct(
            "CompletionBody", [("prompt", prompt)], bases=(CompletionBody,), frozen=True, kw_only=True
        )
        self._reader: id_lists.Reader[CompletionBody] = id_lists.Reader(kind, "prompt", vocab_size)

    def parse(self, data: bytes) -> CompletionBody:
        """Parse and check a body at once. Raises InvalidRequest, whose `param` is the field's path."""
        return _checked(self._reader.decode(data))

    async def read(self, exchange: Exchange, check: id_lists.Check) -> CompletionBody:
        """Read, parse and check a body, without holding up others if it has many ids. See `id_lists.Reader.read`."""
        return _checked(await self._reader.read(exchange, check))


def _checked(body: CompletionBody) -> CompletionBody:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of")
    check_common(body)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise InvalidRequest("max_tokens: 0 needs echo or prompt_logprobs", param="max_tokens")
    return body


def prompts_of(body: CompletionBody) -> "list[str | array[int]]":
    """Return the prompts, each a text or an array of token ids. Raises InvalidRequest."""
    prompt: Any = body.prompt
    if isinstance(prompt, str | array):
        return [prompt]
    kind = type(prompt[0])
    if kind is int:
        with contextlib.suppress(TypeError):  # checking the types of 30,000 ids would take three times as long
            return [packed(prompt)]
    elif kind in (str, list, array) and set(map(type, prompt)) == {kind}:
        if len(prompt) * (body.n or 1) > MAX_CHOICES:
            raise InvalidRequest(f"At most {MAX_CHOICES} choices: prompts times n", param="prompt")
        return prompt if kind is str else list(map(packed, prompt))
    raise InvalidRequest("Expected texts, token ids or lists of token ids, not a mixture", param="prompt")
