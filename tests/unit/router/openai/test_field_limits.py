"""What is refused before it is decoded, by which message; and that the largest valid fields pass."""

import json
from array import array

import pytest

from baton.errors import ContextLengthExceeded, InvalidRequest
from router.openai import field_limits, id_lists
from router.openai.chat_schema import parse_chat
from router.openai.completion_schema import Reader as CompletionReader
from router.openai.embedding_schema import EmbeddingBody
from router.openai.field_limits import check
from router.openai.id_lists import Reader
from router.openai.responses_schema import parse_responses
from router.openai.schema import MAX_MESSAGES

MIB = 2**20
FUNCTION = {"type": "function", "function": {"name": "f"}}
EMBEDDINGS = Reader(EmbeddingBody, "input", 0)
WIDEST_STOP = "\U0001f389" * 1024  # 12 bytes a character when escaped

pytestmark = pytest.mark.skipif(field_limits._find is None, reason="json_fields is not compiled")


def body(**fields) -> bytes:
    return json.dumps({"model": "tiny"} | fields, separators=(",", ":")).encode()


def chat(**fields) -> bytes:
    return body(messages=[{"role": "user", "content": "x"}], **fields)


def called(arguments: str, times: int = 1) -> bytes:
    calls = [{"id": "c", "function": {"name": "f", "arguments": arguments}}] * times
    return body(messages=[{"role": "assistant", "tool_calls": calls}])


@pytest.mark.parametrize(
    ("data", "param", "said"),
    [
        (chat(stop=["x"] * 10_000), "stop", "too many values"),
        (chat(stop="x" * MIB), "stop", "at most 262144 bytes"),
        (chat(logit_bias={str(i): 1 for i in range(5000)}), "logit_bias", "too many values"),
        (chat(**{"user<script>": "x" * MIB}), None, "at most 262144 bytes"),
        (chat(**{"x" * MIB: 1}), None, "too long names"),
        (chat() + b" " * MIB, None, "too much space"),
        (chat().replace(b'"x"', b'"x' + b"\\n" * MIB), "messages", "maximum context length"),
        (b"{" + b'"user":"",' * 5000 + chat()[1:], None, "too many fields"),
        (chat(response_format={"schema": "x" * MIB}), "response_format", "at most 524288 bytes"),
        (chat(tools=[[]] * 10_000), "tools", "too many values"),
        (body(messages=[{}] * 20_000), "messages", "too many values"),
        (body(prompt=["x"] * 10_000), "prompt", "too many values"),
        (body(prompt=[[1]] * 10_000), "prompt", "too many values"),
        (body(prompt=[1] * 10_000), "prompt", "there are 10000 token ids"),
        (body(prompt=[[1] * 1000] * 200), "prompt", "there are 200000 token ids"),
        (body(tokens=[1] * 10_000), "tokens", "there are 10000 token ids"),
        (body(instructions="x" * 2 * MIB), "instructions", "maximum context length"),
        (body(prompt="x" * 2 * MIB), "prompt", "maximum context length"),
        (body(input=[[]] * 20_000), "input", "too many values"),
        (body(messages=["x"] * 20_000, input=["x"] * 20_000), None, "The body has too many values"),
    ],
)
def test_a_field_that_is_too_large_is_named(data, param, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        check(data, 1000)
    assert caught.value.param == param
    assert isinstance(caught.value, ContextLengthExceeded) == ("context" in said or "token ids" in said)


@pytest.mark.parametrize(
    ("data", "parse"),
    [
        (chat(stop=[WIDEST_STOP] * 16), parse_chat),
        (chat(logit_bias={str(1_000_000_000 + i): 100.0 for i in range(1024)}), parse_chat),
        (chat(stop_token_ids=[2**31 - 1] * 128), parse_chat),
        (chat(guided_choice=["x"] * 4096), parse_chat),
        (chat(tools=[FUNCTION] * 128), parse_chat),
        (chat(tools=[FUNCTION], tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto",
         "tools": [FUNCTION] * 128}}), parse_chat),
        (body(messages=[{"role": "user", "content": "x"}] * (MAX_MESSAGES - 1)), parse_chat),
        (body(messages=[{"role": "user", "content": '"{[,:]}' * 100_000}]), parse_chat),
        (body(input=[{"role": "user", "content": "x"}] * (MAX_MESSAGES - 1)), parse_responses),
        (body(prompt=["x" * 50_000] * 128), CompletionReader().parse),
        (body(prompt=[[1] * 1000] * 128), CompletionReader().parse),
        (body(input=["x" * 3000] * 2048), EMBEDDINGS.decode),
        (body(input=[[100_000] * 140] * 2048), EMBEDDINGS.decode),
        (called('{"a": "' + "[]," * 100_000 + '"}'), parse_chat),
        (called("[1, 2, 3]" * 1000, 16), parse_chat),
    ],
)  # fmt: skip
def test_the_largest_valid_fields_pass(data, parse):
    check(data, 1000)
    parse(data)


@pytest.mark.parametrize("arguments", ['{"a":[' + "[]," * 20_000 + "[]]}", '{"a":[' + "1," * 20_000 + "1]}"])
def test_the_number_of_values_in_arguments_of_calls_is_limited(arguments):
    with pytest.raises(InvalidRequest, match="too many values") as caught:
        parse_chat(called(arguments))
    assert caught.value.param == "messages"
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    with pytest.raises(InvalidRequest, match="too many values"):
        parse_responses(body(input=[item]))
    with pytest.raises(InvalidRequest, match="too many values"):
        parse_chat(called('{"a":[' + "[]," * 200 + "[]]}", 200))


def test_without_a_limit_on_the_context_a_text_may_be_as_long_as_the_body():
    check(body(prompt="x" * 7 * MIB))
    check(body(prompt=[1] * 900_000))


def test_without_the_compiled_scan_the_number_of_values_in_a_body_is_limited(monkeypatch):
    monkeypatch.setattr(field_limits, "_find", None)
    with pytest.raises(InvalidRequest, match="too many values"):
        check(body(prompt=[[]] * 200_000))
    check(body(prompt="[" * 100_000))
    parse_chat(called('{"a":[' + "[]," * 100 + "[]]}"))


@pytest.mark.anyio
async def test_the_fields_of_a_large_body_are_found_once(monkeypatch):
    """For its limits; its token ids are read where they were found."""
    data = body(input=[7] * 10_000)

    class Arrived:
        async def read_body(self, check):
            check(data)
            return data

    monkeypatch.setattr(id_lists, "_find", None if id_lists._find is None else lambda _: pytest.fail("found again"))
    read = await EMBEDDINGS.read(Arrived(), check)
    assert read.input == array("I", [7] * 10_000)
