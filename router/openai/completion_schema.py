"""The body of POST /v1/completions."""

import contextlib
import re
import secrets
from array import array
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from baton.native import id_text
from baton.token_ids import packed
from router.openai.body import decode, unsupported
from router.openai.schema import MAX_CHOICES, MAX_INT32, MAX_TOP_LOGPROBS, CommonBody, NoText, TokenId, check_common

_LONG_BYTES = 4096
_KEY = re.compile(rb'"prompt"[ \n\r\t]*:[ \n\r\t]*(?=\[)')
_STAND_IN = secrets.token_hex(16)  # replaces token ids that have been read; random, so that no client can send it


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """The body of POST /v1/completions. A prompt is a text or token ids; several prompts make several choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None  # 0: only prompt work
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None  # must equal n
    suffix: NoText | None = None


class Reader:
    """Parses bodies for one model. Long lists of token ids take a fast path; errors come from the general decoder."""

    def __init__(self, vocab_size: int = 0) -> None:
        """Token ids must be below `vocab_size` (0: unknown), which the decoder checks at no extra cost."""
        token_id: Any = Annotated[int, Meta(ge=0, lt=vocab_size)] if vocab_size else TokenId
        prompt: Any = str | Annotated[list[str | token_id | list[token_id]], Meta(min_length=1)]
        kind = msgspec.defstruct(
            "CompletionBody", [("prompt", prompt)], bases=(CompletionBody,), frozen=True, kw_only=True
        )
        self._decoder: msgspec.json.Decoder[CompletionBody] = msgspec.json.Decoder(kind)
        self._limit = vocab_size or MAX_INT32

    def parse(self, data: bytes) -> CompletionBody:
        """Parse and check a body. Raises InvalidRequest, whose `param` is the field's path."""
        body = self._with_ids(data) or decode(self._decoder, data)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise unsupported("best_of")
        check_common(body)
        if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
            raise InvalidRequest("max_tokens: 0 needs echo or prompt_logprobs", param="max_tokens")
        return body

    def _with_ids(self, data: bytes) -> CompletionBody | None:
        """Parse a long body whose prompt is a list of token ids, which becomes an array. None for any other body."""
        key = _KEY.match(data, max(data.find(b'"prompt"'), 0)) if len(data) > _LONG_BYTES else None
        if key is None:
            return None
        found = _read_ids(data, key.end(), self._limit)
        if found is None:
            return None
        ids, end = found
        try:
            body = self._decoder.decode(b'%b"%b"%b' % (data[: key.end()], _STAND_IN.encode(), data[end:]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return msgspec.structs.replace(body, prompt=ids) if body.prompt == _STAND_IN else None


_read_ids = id_text.load()


def prompts_of(body: CompletionBody) -> "list[str | array[int]]":
    """Return the prompts, each a text or an array of token ids. Raises InvalidRequest."""
    prompt: Any = body.prompt
    if isinstance(prompt, str | array):
        return [prompt]
    kind = type(prompt[0])
    if kind is int:
        with contextlib.suppress(TypeError):  # checking the types of 30,000 ids would take three times as long
            return [packed(prompt)]
    elif kind in (str, list) and set(map(type, prompt)) == {kind}:
        if len(prompt) * (body.n or 1) > MAX_CHOICES:
            raise InvalidRequest(f"At most {MAX_CHOICES} choices: prompts times n", param="prompt")
        return prompt if kind is str else list(map(packed, prompt))
    raise InvalidRequest("Expected texts, token ids or lists of token ids, not a mixture", param="prompt")
