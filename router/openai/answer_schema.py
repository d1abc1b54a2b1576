"""What answers look like, for the OpenAPI document.

They are written by hand for speed (`answer_format`), and held against these types by tests.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_Count = Annotated[int, Meta(ge=0)]


class _Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ErrorFields(_Answer):
    """What went wrong, for a client to read; `param` is the path of the field to change."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Answer):
    """Every error. In a stream that has begun it is the last event."""

    error: ErrorFields


class CachedTokens(_Answer):
    """Prompt tokens whose KV was found in a cache."""

    cached_tokens: _Count


class Usage(_Answer):
    """What an answer cost, in tokens."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: CachedTokens


class TopLogprob(_Answer):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the output."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """Of all tokens of the output."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunctionAnswer(_Answer):
    """What is called, with JSON in a string."""

    name: str
    arguments: str


class ToolCallAnswer(_Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class MessageAnswer(_Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallAnswer] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Answer):
    """One of `n`."""

    index: _Count
    message: MessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Answer):
    """Of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobs(_Answer):
    """Columns; the first token of an echoed prompt has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(_Answer):
    """One of `n` of one of the prompts."""

    index: _Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


class Completion(_Answer):
    """Of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class PromptUsage(_Answer):
    """Where nothing is generated."""

    prompt_tokens: _Count
    total_tokens: _Count


class Embedding(_Answer):
    """Of one input: numbers, or fp32 in base64."""

    object: Literal["embedding"]
    index: _Count
    embedding: list[float] | str


class Embeddings(_Answer):
    """Of /v1/embeddings."""

    object: Literal["list"]
    model: str
    usage: PromptUsage
    data: list[Embedding]


class Score(_Answer):
    """Of one pair of texts."""

    index: _Count
    object: Literal["score"]
    score: float


class Scores(_Answer):
    """Of /v1/score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PromptUsage
    data: list[Score]


class Tokens(_Answer):
    """Of /tokenize."""

    count: _Count
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Answer):
    """Of /detokenize."""

    prompt: str


class Model(_Answer):
    """A name under which a model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class Models(_Answer):
    """Of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Readiness(_Answer):
    """Of the probes."""

    status: str
