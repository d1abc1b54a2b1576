"""Bodies of the two generating endpoints: every field is known, typed and bounded, or the request is refused.

A refusal names the field as `param`, and never repeats what the client sent. Fields of OpenAI's that do not change the
text are accepted and ignored; those that would change it are refused unless they hold their neutral value.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.structured_output import StructuredFields

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 128
_MAX_INT32 = 2**31 - 1
_MAX_NAME_CHARS = 64

Label = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=_MAX_INT32)]
NumTokens = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Body = TypeVar("Body", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream is to contain besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CommonBody(StructuredFields, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Fields of both endpoints. None is the same as missing."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: NumTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIAS)] | None
    ) = None
    # beyond OpenAI's, as vLLM has them
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    # accepted and ignored
    user: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, Label], Meta(max_length=16)] | None = None


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A message. Fields of type Any have to be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Label | None = None
    tool_call_id: Label | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    refusal: Any = None
    tool_calls: Any = None

    @property
    def text(self) -> str:
        """All of the content."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())


class ChatBody(CommonBody, frozen=True, kw_only=True):
    """Of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    parallel_tool_calls: bool | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """Of POST /v1/completions. A prompt is a text or token ids; several make several choices."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None  # 0: only the prompt is worked on
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Any = None
    suffix: Any = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "tool_calls": ([],),
    "annotations": ([],),
}
_UNSUPPORTED = {
    kind: [name for name, hint in kind.__annotations__.items() if hint is Any]
    for kind in (ChatBody, CompletionBody, Message)
}
_CHAT = msgspec.json.Decoder(ChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)
_SAID = re.compile(r"(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def parse_chat(data: bytes) -> ChatBody:
    """Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_CHAT, data)
    _refuse_unsupported(body, "")
    for i, message in enumerate(body.messages):
        _refuse_unsupported(message, f"messages[{i}].")
        if message.content is None:
            raise InvalidRequest("Missing field", param=f"messages[{i}].content")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    _check_common(body)
    return body


def parse_completion(data: bytes) -> CompletionBody:
    """Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_COMPLETION, data)
    _refuse_unsupported(body, "")
    _check_common(body)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise InvalidRequest("max_tokens: 0 needs echo or prompt_logprobs", param="max_tokens")
    return body


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """The prompts, each a text or token ids."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [prompt]
    if all(isinstance(part, str) for part in prompt) or all(isinstance(part, list) for part in prompt):
        if len(prompt) * (body.n or 1) > MAX_CHOICES:
            raise InvalidRequest(f"At most {MAX_CHOICES} choices: prompts times n", param="prompt")
        return list(prompt)
    raise InvalidRequest("Expected texts, token ids or lists of token ids, not a mixture", param="prompt")


def _check_common(body: CommonBody) -> None:
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")


def _refuse_unsupported(value: ChatBody | CompletionBody | Message, path: str) -> None:
    for name in _UNSUPPORTED[type(value)]:
        given = getattr(value, name)
        if given is not None and given not in _NEUTRAL.get(name, ()):
            raise _unsupported(path + name)


def _unsupported(param: str) -> InvalidRequest:
    error = InvalidRequest("This is not supported", param=param)
    error.code = "unsupported_parameter"  # type: ignore[misc]
    return error


def decode(decoder: "msgspec.json.Decoder[Body]", data: bytes) -> Body:
    """A body, or InvalidRequest; its message repeats nothing that the client sent."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The body is not valid JSON") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply") from None


def _invalid(said: str) -> InvalidRequest:
    """msgspec's message without what it repeats of the body."""
    match = _SAID.fullmatch(said)
    what, path = (match["what"], match["path"] or "") if match else (said, "")
    param = path.removeprefix(".")
    if field := _FIELD.fullmatch(what):
        name = field["name"][:_MAX_NAME_CHARS]
        unknown = what.startswith("Object contains")
        return InvalidRequest("Unknown field" if unknown else "Missing field", param=f"{param}.{name}".lstrip("."))
    if what.startswith("Invalid enum value"):
        what = "Only 'text' parts are supported" if param.endswith("].type") else "Invalid value"
    elif what.startswith("Invalid value"):
        what = "Invalid value"
    return InvalidRequest(what, param=param or None)
