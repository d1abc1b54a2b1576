"""The types of answers, for the OpenAPI document.

For speed, answers are not made from these types but assembled by `answer_format`; tests validate them against these.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_Count = Annotated[int, Meta(ge=0)]


class _Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ErrorFields(_Answer):
    """What went wrong; `param` is the path of the field to change."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Answer):
    """An error. In a stream that has begun, it is the last event."""

    error: ErrorFields


class CachedTokens(_Answer):
    """Prompt tokens whose KV was found in a cache."""

    cached_tokens: _Count


class Usage(_Answer):
    """The usage of an answer, in tokens."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: CachedTokens


class TopLogprob(_Answer):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the output, with its log-probability."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """The log-probabilities of all output tokens."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunctionAnswer(_Answer):
    """The function to call. The arguments are a JSON object in a string."""

    name: str
    arguments: str


class ToolCallAnswer(_Answer):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class MessageAnswer(_Answer):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallAnswer] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Answer):
    """One of the `n` choices."""

    index: _Count
    message: MessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Answer):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobs(_Answer):
    """Log-probabilities, as columns. The first token of an echoed prompt has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(_Answer):
    """One of the `n` choices of one of the prompts."""

    index: _Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[Any] | msgspec.UnsetType = msgspec.UNSET


class Completion(_Answer):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class PromptUsage(_Answer):
    """The usage of an answer without output tokens."""

    prompt_tokens: _Count
    total_tokens: _Count


class Embedding(_Answer):
    """The embedding of one input: as numbers, or as fp32 in base64."""

    object: Literal["embedding"]
    index: _Count
    embedding: list[float] | str


class Embeddings(_Answer):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    model: str
    usage: PromptUsage
    data: list[Embedding]


class Score(_Answer):
    """The score of one pair of texts."""

    index: _Count
    object: Literal["score"]
    score: float


class Scores(_Answer):
    """The answer of /v1/score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PromptUsage
    data: list[Score]


class Tokens(_Answer):
    """The answer of /tokenize."""

    count: _Count
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Answer):
    """The answer of /detokenize."""

    prompt: str


class Model(_Answer):
    """One name under which the model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class Models(_Answer):
    """The answer of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Readiness(_Answer):
    """The answer of the probes /health and /ready."""

    status: str
