"""The bodies of POST /v1/embeddings (OpenAI's) and /v1/score (vLLM's). Every field is typed and bounded."""

from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.body import decode
from router.openai.schema import MAX_INT32, Label, TokenId

MAX_INPUTS = 2048
_MAX_DIMENSIONS = 2**16

# vLLM's: use only the first tokens of each input; -1: as many as the model takes
KeptTokens = Annotated[int, Meta(ge=-1, le=MAX_INT32, extra_json_schema={"anyOf": [{"const": -1}, {"minimum": 1}]})]
Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of POST /v1/embeddings. An input is a text or token ids; several inputs make several embeddings."""

    model: str
    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=_MAX_DIMENSIONS)] | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    user: Label | None = None  # accepted and ignored


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of POST /v1/score. A single text is compared with each of the others; equally many, pair by pair."""

    model: str
    text_1: Texts
    text_2: Texts
    truncate_prompt_tokens: KeptTokens | None = None
    user: Label | None = None  # accepted and ignored


_SCORE = msgspec.json.Decoder(ScoreBody)


def parse_score(data: bytes) -> ScoreBody:
    """Parse and check a body. Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_SCORE, data)
    check_kept(body)
    first, second = texts_of(body.text_1), texts_of(body.text_2)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise InvalidRequest("Expected one text, or as many as text_1 has", param="text_2")
    return body


def check_kept(body: EmbeddingBody | ScoreBody) -> None:
    """Raise InvalidRequest if no tokens are to be kept."""
    if body.truncate_prompt_tokens == 0:
        raise InvalidRequest("Expected a number of tokens, or -1", param="truncate_prompt_tokens")


def texts_of(texts: str | list[str]) -> list[str]:
    """Return the texts as a list."""
    return [texts] if isinstance(texts, str) else texts


def inputs_of(body: EmbeddingBody) -> list[str | Sequence[int]]:
    """Return the inputs, each a text or token ids. Raises InvalidRequest."""
    given: Any = body.input
    if isinstance(given, str | array):
        return [given]
    if type(given[0]) is not int and len(given) > MAX_INPUTS:
        raise InvalidRequest(f"At most {MAX_INPUTS} inputs", param="input")
    kinds = set(map(type, given))
    if kinds == {int}:
        return [given]
    if kinds in ({str}, {list}, {array}):
        return list(given)
    raise InvalidRequest("Expected texts, token ids or lists of token ids, not a mixture", param="input")
