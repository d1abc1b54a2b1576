"""What the bodies of all generating endpoints have in common: every field is known, typed and bounded, or refused.

Fields of OpenAI's that do not change the text are accepted and ignored; those that would change it are of a type that
holds nothing but its neutral value. Each endpoint has a schema module of its own. How a body is read is in `body`.
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


_NEUTRAL = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "use_beam_search": False,
}


def check_common(body: CommonBody) -> None:
    """Raise InvalidRequest for what the type of no single field can say."""
    for name, neutral in _NEUTRAL.items():
        if getattr(body, name) not in (None, neutral):
            raise unsupported(name)
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")


def wants_usage(body: CommonBody) -> StreamUsage:
    """Which events of this request's stream tell its usage."""
    options = body.stream_options
    if options is None or not options.include_usage:
        return StreamUsage.NONE
    return StreamUsage.EACH if options.continuous_usage_stats else StreamUsage.LAST
