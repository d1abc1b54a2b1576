"""The types of /v1/responses answers, for the OpenAPI document; see `answer_schema`."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]
_Count = Annotated[int, Meta(ge=0)]


class _Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class OutputText(_Answer):
    """A text of the assistant's message."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[dict[str, Any]]


class ReasoningText(_Answer):
    """A text of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class MessageOutput(_Answer, tag_field="type", tag="message"):
    """The assistant's message."""

    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningOutput(_Answer, tag_field="type", tag="reasoning"):
    """The model's reasoning, before its message or calls."""

    id: str
    status: Status
    summary: list[None]
    content: list[ReasoningText]


class CallOutput(_Answer, tag_field="type", tag="function_call"):
    """A function call."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


class InputDetails(_Answer):
    """Input tokens whose KV was found in a cache."""

    cached_tokens: _Count
    cache_write_tokens: Literal[0]  # required by OpenAI's clients


class OutputDetails(_Answer):
    """Output tokens spent on reasoning, estimated by its share of the characters."""

    reasoning_tokens: _Count


class ResponseUsage(_Answer):
    """The usage of a response, in tokens."""

    input_tokens: _Count
    input_tokens_details: InputDetails
    output_tokens: _Count
    output_tokens_details: OutputDetails
    total_tokens: _Count


class ResponseError(_Answer):
    """Why the response failed."""

    code: str
    message: str


class IncompleteDetails(_Answer):
    """Why the response is incomplete."""

    reason: Literal["max_output_tokens"]


class Response(_Answer):
    """The answer of /v1/responses. Many fields repeat the request's."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageOutput | ReasoningOutput | CallOutput]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
