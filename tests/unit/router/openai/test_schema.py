import json

import pytest

from baton.errors import InvalidRequest
from router.openai.chat_schema import parse_chat
from router.openai.completion_schema import Reader
from router.openai.conversation import conversation
from router.openai.responses_schema import parse_responses

CHAT = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
COMPLETION = {"model": "m", "prompt": "secret"}
parse_completion = Reader().parse

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
        parse_chat(json.dumps({**CHAT, **change}).encode())
    assert raised.value.param == param
    assert raised.value.status == 400
    assert "secret" not in raised.value.message
    assert "169" not in raised.value.message


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
def test_parameters_of_vllm_are_accepted_with_their_default_only(parse):
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
            parse_chat(json.dumps(body).encode())
        assert raised.value.param == param


def test_fields_that_change_nothing_are_accepted():
    assert parse_chat(json.dumps({**CHAT, **IGNORED}).encode()).messages[0].text == "secret"
    null = {"refusal": None, "tool_calls": [], "annotations": [], "audio": None, "function_call": None}
    called = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]}
    assert parse_chat(json.dumps({**CHAT, "messages": [called]}).encode()).messages[0].text == ""
    message = {"role": "assistant", "content": "x", **null}
    assert parse_chat(json.dumps({**CHAT, "messages": [message]}).encode())


def test_cache_control_is_accepted():
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    part = {"type": "text", "text": "a", **mark}
    messages = [{"role": "system", "content": [part]}, {"role": "user", "content": "b", **mark}]
    tool = {"type": "function", "function": {"name": "f"}, **mark}
    assert (
        parse_chat(json.dumps({"model": "m", "messages": messages, "tools": [tool]}).encode()).messages[0].text == "a"
    )


def test_parsed_fields_that_clients_add_to_answers_are_ignored():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": [1]}}}
    message = {"role": "assistant", "content": "{}", "parsed": {"a": None}, "refusal": None, "tool_calls": [call]}
    answer = {"role": "tool", "tool_call_id": "c", "content": "a"}
    body = parse_chat(json.dumps({"model": "m", "messages": [message, answer]}).encode())
    assert "parsed" not in conversation(body.messages).messages[0]
    part = {"type": "output_text", "text": "{}", "annotations": [], "parsed": {"a": 1}}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "parsed_arguments": None}
    parse_responses(json.dumps({"model": "m", "input": [{"role": "assistant", "content": [part]}, item]}).encode())
