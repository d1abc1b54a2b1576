import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidRequest
from router.openai import chat_schema, completion_schema
from router.openai.chat_schema import parse_chat
from router.openai.completion_schema import parse_completion
from router.openai.conversation import conversation
from router.openai.responses_schema import parse_responses

CHAT = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
COMPLETION = {"model": "m", "prompt": "secret"}

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

REFUSED = [  # what is added to a valid chat body, and the param that the error names
    ({"foo": 1}, "foo"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"enable_thinking": "{{ x }}"}}, "chat_template_kwargs.enable_thinking"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"cache_salt": "x"}, "cache_salt"),
    ({"model": 5}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "bar": 1}]}, "messages[0].bar"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"image_url": {"url": "http://169.254.169.254"}}]}]},
        "messages[0].content[0].image_url",
    ),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]}, "messages[0].tool_calls[0].id"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"seed": 2**63}, "seed"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e30}, "repetition_penalty"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": list(range(129))}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].type"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"reasoning_effort": "vast"}, "reasoning_effort"),
    ({"user": "x" * 513}, "user"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
]

IGNORED = {
    "user": "u",
    "service_tier": "auto",
    "store": False,
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "reasoning_effort": "high",
    "verbosity": "low",
    "prompt_cache_retention": "24h",
    "function_call": "auto",
    "functions": [],
    "temperature": None,
    "stop": None,
    "logit_bias": None,
    "n": None,
    "stream_options": None,
}


@pytest.mark.parametrize(("change", "param"), REFUSED)
def test_a_bad_field_is_named(change, param):
    with pytest.raises(InvalidRequest) as raised:
        chat_schema.parse_chat(json.dumps({**CHAT, **change}).encode())
    assert raised.value.param == param
    assert raised.value.status == 400
    assert "secret" not in raised.value.message
    assert "169" not in raised.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a"] * 2, "n": 65}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_bad_field_of_a_completion_is_named(change, param):
    with pytest.raises(InvalidRequest) as raised:
        completion_schema.prompts_of(completion_schema.parse_completion(json.dumps({**COMPLETION, **change}).encode()))
    assert raised.value.param == param


def test_the_codes_are_openais():
    for change, code in (
        ({"foo": 1}, "unknown_parameter"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter"),
        ({"n": "2"}, "invalid_type"),
        ({"temperature": 3}, "invalid_value"),
        ({"functions": [1]}, "unsupported_parameter"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            chat_schema.parse_chat(json.dumps({**CHAT, **change}).encode())
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
def test_where_a_field_is_a_choice_all_that_are_allowed_are_told(parse, change, allowed):
    body = {name: value for name, value in (CHAT | change).items() if value is not None}
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps(body).encode())
    assert caught.value.message == f"Expected one of {allowed}"


@pytest.mark.parametrize("parse", [parse_chat, completion_schema.parse_completion])
def test_what_vllm_has_and_nobody_asks_for_is_accepted_and_nothing_else_of_it(parse):
    neutral = {
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "use_beam_search": False,
    }
    body = CHAT if parse is parse_chat else COMPLETION
    assert parse(json.dumps({**body, **neutral}).encode()).model == body["model"]
    for name, value in neutral.items():
        with pytest.raises(InvalidRequest) as raised:
            parse(json.dumps({**body, name: not value}).encode())
        assert (raised.value.param, raised.value.code) == (name, "unsupported_parameter")


def test_missing_fields_are_named():
    for body, param in (({"messages": CHAT["messages"]}, "model"), ({"model": "m"}, "messages")):
        with pytest.raises(InvalidRequest) as raised:
            chat_schema.parse_chat(json.dumps(body).encode())
        assert raised.value.param == param


def test_fields_that_change_nothing_are_accepted():
    assert chat_schema.parse_chat(json.dumps({**CHAT, **IGNORED}).encode()).messages[0].text == "secret"
    null = {"refusal": None, "tool_calls": [], "annotations": [], "audio": None, "function_call": None}
    called = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]}
    assert chat_schema.parse_chat(json.dumps({**CHAT, "messages": [called]}).encode()).messages[0].text == ""
    message = {"role": "assistant", "content": "x", **null}
    assert chat_schema.parse_chat(json.dumps({**CHAT, "messages": [message]}).encode())


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


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_broken_bodies_are_refused_briefly(data):
    with pytest.raises(InvalidRequest) as raised:
        chat_schema.parse_chat(data)
    assert "secret" not in raised.value.message
    assert len(raised.value.message) + len(raised.value.param or "") < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(
    [*chat_schema.ChatBody.__struct_fields__, *completion_schema.CompletionBody.__struct_fields__, "x"]
)


@given(changes=st.dictionaries(field_names, json_values, max_size=4), chat=st.booleans())
def test_any_body_parses_or_is_refused(changes, chat):
    data = json.dumps({**(CHAT if chat else COMPLETION), **changes}).encode()
    try:
        if chat:
            chat_schema.parse_chat(data)
        else:
            completion_schema.prompts_of(completion_schema.parse_completion(data))
    except InvalidRequest as error:
        refusal = error
    else:
        return
    assert refusal.param is not None or b"NaN" in data or b"Infinity" in data or b"\\u" in data


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(InvalidRequest):
        chat_schema.parse_chat(data)


def test_what_the_clients_parsed_of_an_answer_comes_back_unread():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": [1]}}}
    message = {"role": "assistant", "content": "{}", "parsed": {"a": None}, "refusal": None, "tool_calls": [call]}
    answer = {"role": "tool", "tool_call_id": "c", "content": "a"}
    body = parse_chat(json.dumps({"model": "m", "messages": [message, answer]}).encode())
    assert "parsed" not in conversation(body.messages).messages[0]
    part = {"type": "output_text", "text": "{}", "annotations": [], "parsed": {"a": 1}}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "parsed_arguments": None}
    parse_responses(json.dumps({"model": "m", "input": [{"role": "assistant", "content": [part]}, item]}).encode())


def test_ids_that_the_model_lacks_are_found_while_a_body_is_read():
    reader = completion_schema.Reader(10)
    for prompt in ([3, 10], [[3], [10]]):
        with pytest.raises(InvalidRequest) as raised:
            completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": prompt}).encode(), reader)
        assert (raised.value.param or "").startswith("prompt[")
    for prompt in ("text", ["text"], [3, 9], [[3], [9]]):
        body = completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": prompt}).encode(), reader)
        assert isinstance(body, completion_schema.CompletionBody)


SCHEMA_OF_IDS = {"name": "s", "schema": {"prompt": [1] * 5000}}


def test_long_lists_of_ids_are_read_like_short_ones():
    reader, ids = completion_schema.Reader(10), [i % 10 for i in range(5000)]
    for change in ({}, {"stream": True, "n": 2}):
        body = completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": ids, **change}).encode(), reader)
        assert completion_schema.prompts_of(body) == [array("I", ids)]
        assert isinstance(body, completion_schema.CompletionBody)
        assert body.n == change.get("n")
    decoy = {"metadata": {"prompt": "x"}, "response_format": {"type": "json_schema", "json_schema": SCHEMA_OF_IDS}}
    for data in ({**decoy, **COMPLETION, "prompt": "text"}, {**decoy, **COMPLETION, "prompt": ids}):
        body = completion_schema.parse_completion(json.dumps(data).encode(), reader)
        (prompt,) = completion_schema.prompts_of(body)
        assert prompt == data["prompt"] if isinstance(prompt, str) else list(prompt) == ids
    for wrong, param in ((10, "prompt[5000]"), (-1, "prompt[5000]"), (None, "prompt[5000]"), ("a", "prompt")):
        with pytest.raises(InvalidRequest) as raised:
            completion_schema.prompts_of(
                completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": [*ids, wrong]}).encode(), reader)
            )
        assert raised.value.param == param
    for change in ({"n": 0}, {"stop": 1}, {"unknown": 1}):
        with pytest.raises(InvalidRequest) as raised:
            completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": ids, **change}).encode(), reader)
        assert raised.value.param == next(iter(change))


def test_token_ids_are_packed_once():
    for prompt in ([3, 9], [[3, 9]]):
        body = completion_schema.parse_completion(json.dumps({**COMPLETION, "prompt": prompt}).encode())
        (packed,) = completion_schema.prompts_of(body)
        assert packed == array("I", [3, 9])


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    numbers = b'{"model": "m", "max_tokens": 16.0, "seed": 1e3, "stop_token_ids": [1.0], "n": 2.0, "top_p": 1.0'
    body = parse_chat(numbers + b', "messages": [{"role": "user", "content": "1.0"}]}')
    assert (body.max_tokens, body.seed, body.stop_token_ids, body.n, body.top_p) == (16, 1000, [1], 2, 1.0)
    assert body.messages[0].content == "1.0"
    assert parse_completion(b'{"model": "m", "prompt": [1.0, 2]}').prompt == [1, 2]
    for number in (b"1.5", b"1e300", b'"16"'):
        with pytest.raises(InvalidRequest, match="Expected `int"):
            parse_completion(b'{"model": "m", "prompt": "x", "max_tokens": %b}' % number)
