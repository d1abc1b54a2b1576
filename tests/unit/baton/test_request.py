"""Requests and layouts cross the wire unchanged."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidRequest
from baton.request import FinishReason, Generation, Grammar, GrammarKind, SamplingParams
from baton.token_ids import packed
from baton.v1 import types_pb2

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=50)
f32 = st.floats(0, 100, width=32)
grammar = st.builds(Grammar, kind=st.sampled_from(GrammarKind), text=st.text(), param=st.text(max_size=20))
sampling = st.builds(
    SamplingParams,
    temperature=f32,
    top_p=f32,
    top_k=st.integers(0, 1000),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, 2**31),
    stop_token_ids=token_ids.map(tuple),
    ignore_eos=st.booleans(),
    num_logprobs=st.integers(-1, 20),
    logit_bias=st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100, width=32), max_size=5),
    grammar=st.none() | grammar,
)


@given(sampling, token_ids, st.integers(0, 2**64 - 1), st.integers(0, 10))
def test_a_generation_survives_its_protobuf_form(params, tokens, key, num_output):
    generation = Generation(
        request_id="r",
        key=key,
        attempt=3,
        token_ids=tokens + [7] * num_output,
        num_prompt_tokens=len(tokens),
        sampling=params,
        cache_salt=b"\x00\xff",
        router_id="router-0",
    )
    wire = types_pb2.Generation.FromString(generation.to_proto().SerializeToString())
    assert Generation.from_proto(wire, "router-0") == generation
    assert msgspec.structs.replace(generation, token_ids=packed(generation.token_ids)).to_proto() == wire
    assert generation.num_output_tokens == num_output


def test_finish_reasons_and_kinds_equal_the_protobuf_enums():
    assert {reason.value for reason in FinishReason} == set(types_pb2.FinishReason.values())
    assert {kind.value for kind in GrammarKind} == set(types_pb2.GrammarKind.values()) - {0}


def test_token_ids_are_sent_as_little_endian_words():
    generation = Generation(
        request_id="r", key=1, token_ids=[1, 258], num_prompt_tokens=2, sampling=SamplingParams(), router_id="router"
    )
    assert generation.to_proto().token_ids == b"\1\0\0\0\2\1\0\0"


@pytest.mark.parametrize(
    "bad",
    [
        types_pb2.Generation(token_ids=b"\1\0\0\0\2"),
        types_pb2.Generation(sampling=types_pb2.SamplingParams(grammar=types_pb2.Grammar(kind=77))),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_generation_is_refused(bad):
    with pytest.raises(InvalidRequest):
        Generation.from_proto(bad, "router")
