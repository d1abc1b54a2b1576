"""What the bodies of all generating endpoints have in common: every field is known, typed and bounded, or refused.

A refusal names the field as `param`, and never repeats what the client sent. Fields of OpenAI's that do not change the
text are accepted and ignored; those that would change it are of a type that holds nothing but its neutral value. Each
endpoint has a schema module of its own.
"""

import re
from enum import IntEnum
from operator import gt
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from baton.errors import ContextLengthExceeded, InvalidRequest
from baton.kv import byte_count
from router.http.turns import LARGE_BYTES
from router.openai.choices import choices
from router.openai.structured_output import StructuredFields

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 128
MAX_INT32 = 2**31 - 1
MAX_MESSAGES = 2**15

Label = Annotated[str, Meta(max_length=512)]
Text = Annotated[str, Meta(max_length=2**23)]  # no body is longer
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_INT32)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=MAX_LOGIT_BIAS, extra_json_schema={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"}}),
]
Metadata = Annotated[dict[str, Label], Meta(max_length=16)]
Ignored: TypeAlias = Annotated[msgspec.Raw, Meta(extra_json_schema={"description": "Anything"})] | msgspec.UnsetType
Nothing: TypeAlias = None  # of a field that is known, and refused with any value
NoList = Annotated[list[None], Meta(max_length=0)]
NoText = Annotated[str, Meta(max_length=0)]
Yes = Annotated[bool, Meta(extra_json_schema={"const": True})]
No = Annotated[bool, Meta(extra_json_schema={"const": False})]
Body = TypeVar("Body", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream is to contain besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: with include_usage, in every event


class StreamUsage(IntEnum):
    """Which events of a stream tell what it has cost."""

    NONE = 0
    LAST = 1
    EACH = 2


class CacheHint(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How long OpenAI is to cache what comes before. Caches here know by themselves."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Label | None = None


class CommonBody(StructuredFields, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Fields of chat and completion bodies. None is the same as missing."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    # beyond OpenAI's, as vLLM has them
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
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
    metadata: Metadata | None = None
    # what clients of vLLM send where they want nothing of it
    skip_special_tokens: Yes | None = None
    spaces_between_special_tokens: Yes | None = None
    include_stop_str_in_output: No | None = None
    use_beam_search: No | None = None


_SMALL_BYTES = 2**16  # that may be read twice
_GOT_FLOAT = re.compile(r"Expected `int\b[^`]*`, got `float`")
_MARKS, _MOST = b'{[",', (2**17, 2**17, 2**19, 2**20)  # in a large body, texts included
_count = byte_count.fastest()
_SAID = re.compile(r"(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_SANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INDEX = re.compile(r"\[\d+\]$")
_ANY_INDEX = re.compile(r"\[\d+\]")
_OTHER_PARTS = frozenset({"image_url", "input_audio", "file", "file_data", "file_id", "file_url", "video_url"})
_ONLY_TEXT = "Only text parts are supported"
_ONLY_NEUTRAL = re.compile(r"Expected `(null`,|(array|str)` of length <= 0|(array|str) \| null`)")


_YES = ("skip_special_tokens", "spaces_between_special_tokens")
_NO = ("include_stop_str_in_output", "use_beam_search")


def check_common(body: CommonBody) -> None:
    """What no single field tells, or no type."""
    for names, refused in ((_YES, False), (_NO, True)):
        for name in names:
            if getattr(body, name) is refused:
                raise unsupported(name)
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")


def wants_usage(body: CommonBody) -> StreamUsage:
    """In a stream."""
    options = body.stream_options
    if options is None or not options.include_usage:
        return StreamUsage.NONE
    return StreamUsage.EACH if options.continuous_usage_stats else StreamUsage.LAST


def unsupported(param: str) -> InvalidRequest:
    """For a field that is known, and not served."""
    return coded(InvalidRequest("This is not supported: leave it out", param=param), "unsupported_parameter")


def too_long(max_model_len: int, what: str, param: str) -> ContextLengthExceeded:
    """In OpenAI's words, by which clients know it (LiteLLM, which then takes another model) more than by its code."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens, however {what}", param=param
    )


def coded(error: InvalidRequest, code: str) -> InvalidRequest:
    """The same with another of OpenAI's codes."""
    error.code = code  # type: ignore[misc]
    return error


def check_num_values(data: bytes) -> None:
    """Raise InvalidRequest for too many, before any is made.

    Eight megabytes of brackets would hold up the router for half a second, and so all of its streams.
    """
    if len(data) > LARGE_BYTES and any(map(gt, _count(data, _MARKS), _MOST)):
        raise InvalidRequest("The body has too many values")


def decode(decoder: "msgspec.json.Decoder[Body]", data: bytes) -> Body:
    """A body, or InvalidRequest; its message repeats nothing that the client sent."""
    check_num_values(data)
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            if len(data) > _SMALL_BYTES or not _GOT_FLOAT.match(str(error)):
                raise
            return decoder.decode(msgspec.json.encode(_with_integers(msgspec.json.decode(data))))
    except msgspec.ValidationError as error:
        raise _invalid(str(error), decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The body is not valid JSON") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply") from None


def _with_integers(value: Any) -> Any:
    """JSON has one kind of numbers, and some clients have one, too: their 1.0 is 1 where an integer is wanted."""
    if isinstance(value, dict):
        return {name: _with_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _invalid(said: str, kind: Any) -> InvalidRequest:
    """msgspec's message about a body of that type, without what it repeats of the body."""
    match = _SAID.fullmatch(said)
    what, path = (match["what"], match["path"] or "") if match else (said, "")
    param = path.removeprefix(".")
    if field := _FIELD.fullmatch(what):
        if _SANE_NAME.fullmatch(field["name"]):  # else it is no field's name that somebody got wrong
            param = f"{param}.{field['name']}".lstrip(".")
        if field["name"] in _OTHER_PARTS:
            return coded(InvalidRequest(_ONLY_TEXT, param=param or None), "unsupported_parameter")
        if what.startswith("Object contains"):
            return coded(InvalidRequest("Unknown field", param=param or None), "unknown_parameter")
        return coded(InvalidRequest("Missing field", param=param), "missing_required_parameter")
    if _ONLY_NEUTRAL.match(what):
        return unsupported(_INDEX.sub("", param))
    if what.startswith("Invalid enum value"):
        what = _ONLY_TEXT if param.endswith("].type") and "content[" in param else _one_of(kind, param)
    elif what.startswith("Invalid value"):
        what = _one_of(kind, param)
    error = InvalidRequest(what, param=param or None)
    return coded(error, "invalid_type") if what.startswith("Expected `") and ", got `" in what else error


def _one_of(kind: Any, param: str) -> str:
    allowed = choices(kind, _ANY_INDEX.sub("[]", param))
    return f"Expected one of {', '.join(allowed)}" if allowed else "Invalid value"
