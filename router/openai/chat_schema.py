"""The body of POST /v1/chat/completions."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.body import coded, decode
from router.openai.field_limits import check_arguments
from router.openai.schema import (
    MAX_MESSAGES,
    MAX_TOP_LOGPROBS,
    CacheControl,
    CacheHint,
    CommonBody,
    Ignored,
    Label,
    NoList,
    NoText,
    Nothing,
    NumTokens,
    Text,
    check_common,
)
from router.openai.tool_schema import MAX_TOOLS, CallID, Tool, ToolChoice

_MAX_CALLS = 256

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity: TypeAlias = Literal["low", "medium", "high"]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str
    # accepted and ignored
    prompt_cache_breakpoint: CacheHint | None = None
    cache_control: CacheControl | None = None


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The function of a call, as the answer had it: models also write names that no tool can have."""

    name: Label
    arguments: Text
    parsed_arguments: Ignored = msgspec.UNSET  # OpenAI's Node client adds it and sends it back


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A tool call in an assistant's message."""

    id: CallID
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Meta(ge=0, le=_MAX_CALLS)] | None = None  # sent by clients that echo a stream's deltas


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Label | None = None
    tool_call_id: CallID | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=_MAX_CALLS)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None  # vLLM's name for reasoning_content, which clients send back
    parsed: Ignored = msgspec.UNSET  # OpenAI's Node client adds it and sends it back
    cache_control: CacheControl | None = None  # accepted and ignored
    # must be empty
    annotations: NoList | None = None
    audio: Nothing = None
    function_call: Nothing = None
    refusal: NoText | None = None

    @property
    def sizes(self) -> "Iterator[int]":
        """The lengths, in characters, of those parts that may be many or long."""
        yield len(self.thought or "")
        if isinstance(self.content, list):
            yield from (len(part.text) for part in self.content)
        else:
            yield len(self.content or "")
        yield from (len(call.function.arguments) for call in self.tool_calls or ())

    @property
    def thought(self) -> str | None:
        """The assistant's reasoning, under either name."""
        return self.reasoning_content if self.reasoning is None else self.reasoning

    @property
    def text(self) -> str:
        """The whole content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())


class Switches(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Template variables that control thinking, as for vLLM, SGLang and llama.cpp. No others reach the template."""

    enable_thinking: bool | None = None  # Qwen 3, GLM 4.5
    preserve_thinking: bool | None = None  # Qwen 3.6: keep the reasoning of earlier turns
    thinking: bool | None = None  # DeepSeek V3.1, Granite


class ChatBody(CommonBody, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Switches | None = None
    # accepted and ignored
    prompt_cache_options: CacheHint | None = None
    verbosity: Verbosity | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    # must be empty
    audio: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    functions: NoList | None = None
    moderation: Nothing = None
    prediction: Nothing = None
    web_search_options: Nothing = None


_CHAT = msgspec.json.Decoder(ChatBody)


def parse_chat(data: bytes) -> ChatBody:
    """Parse and check a body. Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_CHAT, data)
    check_messages(body.messages)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    check_common(body)
    return body


def check_messages(messages: Sequence[Message]) -> None:
    """Raise InvalidRequest for errors that depend on several fields of a message."""
    for i, message in enumerate(messages):
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest("Only assistant messages may have tool_calls", param=f"messages[{i}].tool_calls")
        if message.content is None and not message.tool_calls:
            raise _missing(f"messages[{i}].content")
        if message.role == "tool" and message.tool_call_id is None:
            raise _missing(f"messages[{i}].tool_call_id")
    check_arguments((call.function.arguments for m in messages for call in m.tool_calls or ()), "messages")


def _missing(param: str) -> InvalidRequest:
    return coded(InvalidRequest("Missing field", param=param), "missing_required_parameter")
