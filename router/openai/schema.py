"""The fields that the bodies of all generating endpoints share. Every field is typed and bounded; others are refused.

OpenAI's fields that do not change the text are accepted and ignored. Those that would change it, but are not supported,
have a type that only admits the neutral value. Each endpoint has its own schema module; `body` does the decoding.
"""

from enum import IntEnum
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.body import unsupported
from router.openai.structured_output import StructuredFields

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 128
MAX_INT32 = 2**31 - 1
MAX_MESSAGES = 2**13

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
Nothing: TypeAlias = None  # type of a field that is known, but refused with any value
NoList = Annotated[list[None], Meta(max_length=0)]
NoText = Annotated[str, Meta(max_length=0)]
Yes = Annotated[bool, Meta(extra_json_schema={"const": True})]
No = Annotated[bool, Meta(extra_json_schema={"const": False})]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream contains besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: with include_usage, usage in every event


class StreamUsage(IntEnum):
    """Which events of a stream contain the usage."""

    NONE = 0
    LAST = 1
    EACH = 2


class CacheHint(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How OpenAI should cache the prompt up to here. Accepted and ignored: the prefix cache needs no hints."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Label | None = None


class CacheControl(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The same in Anthropic's form, which LiteLLM passes on to any endpoint. Accepted and ignored."""

    type: Literal["ephemeral"]
    ttl: Label | None = None


class CommonBody(StructuredFields, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The fields of chat and completion bodies. None means the same as a missing field."""

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
    # vLLM's, accepted only with their neutral values
    skip_special_tokens: Yes | None = None
    spaces_between_special_tokens: Yes | None = None
    include_stop_str_in_output: No | None = None
    use_beam_search: No | None = None


_NEUTRAL = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "use_beam_search": False,
}


def check_common(body: CommonBody) -> None:
    """Raise InvalidRequest for errors that the types of single fields do not catch."""
    for name, neutral in _NEUTRAL.items():
        if getattr(body, name) not in (None, neutral):
            raise unsupported(name)
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")


def wants_usage(body: CommonBody) -> StreamUsage:
    """Return which events of this request's stream contain the usage."""
    options = body.stream_options
    if options is None or not options.include_usage:
        return StreamUsage.NONE
    return StreamUsage.EACH if options.continuous_usage_stats else StreamUsage.LAST
