"""A generation request as passed between services, in plain Python. Only `to_proto` and `from_proto` know the wire."""

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from baton import token_ids as ids
from baton.errors import InvalidRequest
from baton.v1 import types_pb2


class FinishReason(IntEnum):
    """Why a request ended. The numbers are those of the wire."""

    UNFINISHED = types_pb2.FINISH_REASON_UNSPECIFIED
    STOP = types_pb2.FINISH_REASON_STOP
    LENGTH = types_pb2.FINISH_REASON_LENGTH
    ABORT = types_pb2.FINISH_REASON_ABORT
    ERROR = types_pb2.FINISH_REASON_ERROR


class GrammarKind(IntEnum):
    """The language of a grammar's text. The numbers are those of the wire."""

    JSON_SCHEMA = types_pb2.GRAMMAR_KIND_JSON_SCHEMA
    REGEX = types_pb2.GRAMMAR_KIND_REGEX
    CHOICE = types_pb2.GRAMMAR_KIND_CHOICE  # a JSON list of strings, of which the output is one
    CFG = types_pb2.GRAMMAR_KIND_CFG  # context-free: Lark or GBNF


class Grammar(msgspec.Struct, frozen=True):
    """A grammar that the whole output has to match."""

    kind: GrammarKind
    text: str
    param: str  # the request parameter that it came from, for error messages

    def to_proto(self) -> types_pb2.Grammar:
        """Convert to the wire's message."""
        return types_pb2.Grammar(kind=self.kind.value, text=self.text, param=self.param)

    @classmethod
    def from_proto(cls, proto: types_pb2.Grammar) -> "Grammar":
        """Convert from the wire's message. Raises ValueError for an unknown kind."""
        return cls(GrammarKind(proto.kind), proto.text, proto.param)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How output tokens are sampled. The defaults sample from the plain softmax."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # drawn by the router if the client gives none
    max_tokens: int = 16  # output tokens of all attempts together
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int = -1  # -1: none; 0: of the sampled token; n: also of the n likeliest
    logit_bias: dict[int, float] = {}
    grammar: Grammar | None = None

    def to_proto(self) -> types_pb2.SamplingParams:
        """Convert to the wire's message."""
        values = {name: value for name, value in zip(_SAMPLING, msgspec.structs.astuple(self), strict=True) if value}
        if self.grammar is not None:
            values["grammar"] = self.grammar.to_proto()
        return types_pb2.SamplingParams(**values)  # a field that is not set reads as zero

    @classmethod
    def from_proto(cls, proto: types_pb2.SamplingParams) -> "SamplingParams":
        """Convert from the wire's message. Values are not checked: the router has validated them."""
        values = {name: getattr(proto, name) for name in cls.__struct_fields__}
        values["stop_token_ids"] = tuple(proto.stop_token_ids)
        values["logit_bias"] = dict(proto.logit_bias)
        values["grammar"] = Grammar.from_proto(proto.grammar) if proto.HasField("grammar") else None
        return cls(**values)


_SAMPLING = SamplingParams.__struct_fields__


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one user generation. All ids in it are minted by the router."""

    request_id: str
    key: int  # names the request in this router's step batches
    attempt: int = 0
    token_ids: Sequence[int]  # the prompt, then the output tokens of earlier attempts
    num_prompt_tokens: int
    sampling: SamplingParams
    cache_salt: bytes = b""
    timeout_ms: int = 600_000
    router_id: str
    traceparent: str = ""  # W3C; empty if the request is not traced

    @property
    def num_output_tokens(self) -> int:
        """The number of output tokens of earlier attempts, which is also the output position of the next one."""
        return len(self.token_ids) - self.num_prompt_tokens

    def to_proto(self) -> types_pb2.Generation:
        """Convert to the wire's message, which leaves out `router_id`: the message around it names the router."""
        proto = types_pb2.Generation()
        self.write_to(proto)
        return proto

    def write_to(self, proto: types_pb2.Generation) -> None:
        """Fill in an empty message, which may be part of another one: adding a full one there would copy the prompt."""
        proto.request_id, proto.key, proto.attempt = self.request_id, self.key, self.attempt
        proto.token_ids, proto.num_prompt_tokens = ids.to_bytes(self.token_ids), self.num_prompt_tokens
        proto.sampling.MergeFrom(self.sampling.to_proto())
        proto.cache_salt, proto.timeout_ms, proto.traceparent = self.cache_salt, self.timeout_ms, self.traceparent

    @classmethod
    def from_proto(cls, proto: types_pb2.Generation, router_id: str) -> "Generation":
        """Convert from the wire's message. InvalidRequest for an unknown kind of grammar, or token ids cut off."""
        try:
            sampling = SamplingParams.from_proto(proto.sampling)
        except ValueError:
            raise InvalidRequest("the kind of grammar is unknown", param="grammar") from None
        return cls(
            request_id=proto.request_id,
            key=proto.key,
            attempt=proto.attempt,
            token_ids=ids.from_bytes(proto.token_ids),
            num_prompt_tokens=proto.num_prompt_tokens,
            sampling=sampling,
            cache_salt=proto.cache_salt,
            timeout_ms=proto.timeout_ms,
            router_id=router_id,
            traceparent=proto.traceparent,
        )
