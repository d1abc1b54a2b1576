"""The body of POST /v1/responses. Nothing is stored, so fields that refer to an earlier response are refused."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.body import coded, decode, unsupported
from router.openai.chat_schema import Effort, Switches, Verbosity
from router.openai.field_limits import check_arguments
from router.openai.schema import (
    MAX_MESSAGES,
    MAX_TOP_LOGPROBS,
    CacheHint,
    Ignored,
    Label,
    Metadata,
    NoList,
    Nothing,
    NumTokens,
    Temperature,
    Text,
    TopP,
)
from router.openai.structured_output import JSONObjectFormat, JSONSchemaFormat, Name, NamedSchema, RawSchema, TextFormat
from router.openai.tool_schema import MAX_TOOLS, CallID, Function, Tools, chosen, tool_specs

LOGPROBS = "message.output_text.logprobs"


class ContentPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A text of an item. Fields that answers have beside their texts are accepted, since clients send them back."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: Text
    annotations: NoList | None = None
    logprobs: list[Any] | None = None
    # accepted and ignored
    prompt_cache_breakpoint: CacheHint | None = None
    parsed: Ignored = msgspec.UNSET


class Direct(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The caller of a function: the model itself, not a program that it wrote."""

    type: Literal["direct"]


class InputItem(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A message, a function call, its output, or reasoning; the required fields depend on the type."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[ContentPart] | None = None
    call_id: CallID | None = None
    name: Label | None = None
    arguments: Text | None = None
    output: Text | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    # accepted and ignored
    id: Label | None = None
    status: Label | None = None
    phase: Label | None = None
    encrypted_content: Text | None = None
    caller: Direct | None = None
    parsed_arguments: Ignored = msgspec.UNSET
    # must be empty
    run_async: Nothing = msgspec.field(name="async", default=None)
    async_: Nothing = None  # the name in items dumped by OpenAI's Python client
    namespace: Nothing = None

    @property
    def sizes(self) -> Iterator[int]:
        """The lengths, in characters, of those parts that may be many or long."""
        yield len(self.arguments or "")
        for field in (self.content, self.output):
            if isinstance(field, list):
                yield from (len(part.text) for part in field)
            else:
                yield len(field or "")


class FunctionTool(Function, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    allowed_callers: list[Literal["direct"]] | None = None
    # must be empty
    run_async: Nothing = msgspec.field(name="async", default=None)
    defer_loading: Nothing = None
    output_schema: Nothing = None


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="function"):
    """This tool has to be called."""

    name: Name


class Named(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One of the tools."""

    type: Literal["function"]
    name: Name


class AllowedFunctions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[Named], Meta(min_length=1, max_length=MAX_TOOLS)]


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema describes."""

    name: Name
    schema: RawSchema = msgspec.UNSET
    strict: bool | None = None
    description: Annotated[str, Meta(max_length=4096)] | None = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The format of the text. `verbosity` is accepted and ignored."""

    format: TextFormat | JSONObjectFormat | SchemaFormat | None = None
    verbosity: Verbosity | None = None


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How much to think. Summaries are never generated."""

    effort: Effort | None = None
    mode: Literal["standard"] | None = None
    # accepted and ignored
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Accepted and ignored."""

    include_obfuscation: bool | None = None


class ResponsesBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of POST /v1/responses."""

    model: str
    input: Annotated[str, Meta(min_length=1)] | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: Annotated[list[Label], Meta(max_length=16)] | None = None  # LOGPROBS; others are ignored
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Switches | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    # accepted and ignored
    max_tool_calls: NumTokens | None = None
    metadata: Metadata | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_options: CacheHint | None = None
    prompt_cache_retention: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Label | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Label | None = None
    # must be empty
    background: Annotated[bool, Meta(extra_json_schema={"enum": [False]})] | None = None
    access_programs: Nothing = None
    background_options: Nothing = None
    context_management: Nothing = None
    conversation: Nothing = None
    image: Nothing = None
    moderation: Nothing = None
    previous_response_id: Nothing = None
    prompt: Nothing = None


_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
_RESPONSES = msgspec.json.Decoder(ResponsesBody)


def parse_responses(data: bytes) -> ResponsesBody:
    """Parse and check a body. Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_RESPONSES, data)
    if body.background:
        raise unsupported("background")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    items = body.input if isinstance(body.input, list) else ()
    check_arguments((item.arguments for item in items if item.arguments), "input")
    for i, item in enumerate(items):
        for name in _NEEDED[item.type]:
            if getattr(item, name) is None:
                error = InvalidRequest("Missing field", param=f"input[{i}].{name}")
                raise coded(error, "missing_required_parameter")
    return body


def tools_of(body: ResponsesBody) -> Tools:
    """Return the tools that may be called. Raises InvalidRequest."""
    specs = tool_specs((f"tools[{i}]", tool) for i, tool in enumerate(body.tools or ()))
    match body.tool_choice:
        case NamedFunction(name=name):
            return chosen(specs, "required", [name], parallel=False)
        case AllowedFunctions(mode=mode, tools=some):
            return chosen(specs, mode, [tool.name for tool in some], parallel=body.parallel_tool_calls)
        case choice:
            return chosen(specs, choice or "auto", parallel=body.parallel_tool_calls)


def response_format(body: ResponsesBody) -> TextFormat | JSONObjectFormat | JSONSchemaFormat | None:
    """Return the format of the text as a chat body's `response_format`."""
    given = body.text.format if body.text else None
    if isinstance(given, SchemaFormat):
        return JSONSchemaFormat(NamedSchema(name=given.name, schema=given.schema))
    return given
