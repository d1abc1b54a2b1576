"""Invalid bodies, and bodies with wrong fields: what the error says, and what it must not repeat."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidRequest
from router.http.error_format import error_object
from router.openai.chat_schema import ChatBody, parse_chat
from router.openai.completion_schema import CompletionBody, Reader, prompts_of
from router.openai.responses_schema import parse_responses

CHAT = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
COMPLETION = {"model": "m", "prompt": "secret"}
parse_completion = Reader().parse


def test_errors_have_openais_codes():
    for change, code in (
        ({"foo": 1}, "unknown_parameter"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter"),
        ({"n": "2"}, "invalid_type"),
        ({"temperature": 3}, "invalid_value"),
        ({"functions": [1]}, "unsupported_parameter"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            parse_chat(json.dumps({**CHAT, **change}).encode())
        assert raised.value.code == code


@pytest.mark.parametrize(
    ("parse", "change", "allowed"),
    [
        (parse_chat, {"messages": [{"role": "x", "content": "a"}]}, "assistant, developer, system, tool, user"),
        (parse_chat, {"tool_choice": "x"}, "auto, none, required"),
        (parse_chat, {"tool_choice": {"type": "x"}}, "function, allowed_tools"),
        (parse_chat, {"tools": [{"type": "x"}]}, "function"),
        (parse_chat, {"response_format": {"type": "x"}}, "text, json_object, json_schema"),
        (
            parse_responses,
            {"messages": None, "input": [{"role": "x", "content": "a"}]},
            "assistant, developer, system, user",
        ),
    ],
)
def test_an_invalid_choice_is_answered_with_the_allowed_values(parse, change, allowed):
    body = {name: value for name, value in (CHAT | change).items() if value is not None}
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps(body).encode())
    assert caught.value.message == f"Expected one of {allowed}"


BROKEN = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"model":"m","messages":[{"role":"user","content":"secret"}],"temperature":NaN}',
    b'{"model":"m","messages":[{"role":"user","content":"secret"}],"temperature":Infinity}',
    b'{"model":"m","messages":[{"role":"user","content":"secret"}],"temperature":1e999}',
    b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"\xc3"}]}',
    b'{"model":"m","tools":' + b"[" * 100_000,
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":' + b"9" * 10_000 + b"}",
    b'{"' + b"x" * 100_000 + b'":1}',
]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Input data was truncated"),
        (b"{'model':'m'}", "object keys must be strings (byte 1)"),
        (b'{"model":"m","temperature":NaN}', "invalid character (byte 27)"),
        (b'{"model":"caf\xe9"}', "a text in it is not UTF-8"),
    ],
)
def test_invalid_json_is_answered_with_reason_and_position(data, why):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(data)
    assert raised.value.message == f"The body is not valid JSON: {why}"


@pytest.mark.parametrize(("field", "value"), [("n", 0), ("n", 129), ("seed", 1.5), ("top_p", 2)])
def test_the_message_names_fields_with_short_names(field, value):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(json.dumps(CHAT | {field: value}).encode())
    assert error_object(raised.value)["error"]["message"].startswith(f"{field}: Expected `")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"reasoning_effort": "x" * 5000}, "reasoning_effort", "invalid_value"),
        ({"messages": [{"role": "x" * 5000, "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "y" * 5000: 1}]}, "messages[0]", "unknown_parameter"),
        ({"y" * 500_000: 1}, None, "unknown_parameter"),
    ],
)
def test_a_long_value_or_name_is_refused_at_its_place(change, param, code):
    """In milliseconds: a name of seven megabytes once took a quarter of a second."""
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(json.dumps(CHAT | change).encode())
    assert (raised.value.param, raised.value.code) == (param, code)
    assert len(raised.value.message) < 200


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_broken_bodies_are_refused_briefly(data):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(data)
    assert "secret" not in raised.value.message
    assert len(raised.value.message) + len(raised.value.param or "") < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__, "x"])


@given(changes=st.dictionaries(field_names, json_values, max_size=4), chat=st.booleans())
def test_any_body_parses_or_is_refused(changes, chat):
    data = json.dumps({**(CHAT if chat else COMPLETION), **changes}).encode()
    try:
        if chat:
            parse_chat(data)
        else:
            prompts_of(parse_completion(data))
    except InvalidRequest as error:
        refusal = error
    else:
        return
    assert refusal.param is not None or b"NaN" in data or b"Infinity" in data or b"\\u" in data


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(InvalidRequest):
        parse_chat(data)


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    numbers = b'{"model": "m", "max_tokens": 16.0, "seed": 1e3, "stop_token_ids": [1.0], "n": 2.0, "top_p": 1.0'
    body = parse_chat(numbers + b', "messages": [{"role": "user", "content": "1.0"}]}')
    assert (body.max_tokens, body.seed, body.stop_token_ids, body.n, body.top_p) == (16, 1000, [1], 2, 1.0)
    assert body.messages[0].content == "1.0"
    assert parse_completion(b'{"model": "m", "prompt": [1.0, 2]}').prompt == [1, 2]
    for number in (b"1.5", b"1e300", b'"16"'):
        with pytest.raises(InvalidRequest, match="Expected `int"):
            parse_completion(b'{"model": "m", "prompt": "x", "max_tokens": %b}' % number)
