"""Tools as OpenAI's own client sees them, with a model that outputs what a test wants."""

import json

import openai
import pytest

from baton.process.settings import FrontFlags
from baton.request import GrammarKind
from router.openai.parsing.style import OutputStyle
from router.openai.served_model import ServedModel
from tests.unit.router.openai.tools.asking import ASK, CALLS, CITY, TIME, WEATHER, prompt, streamed

pytestmark = pytest.mark.anyio


async def test_calls_in_a_whole_answer(client, say, dispatch, served_model):
    say(CALLS)
    answer = await client.chat.completions.create(**ASK)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me see."
    called = [(call.type, call.function.name, call.function.arguments) for call in message.tool_calls]
    assert called == [("function", "weather", CITY), ("function", "time", "{}")]
    assert len({call.id for call in message.tool_calls}) == 2
    assert json.dumps(WEATHER) in prompt(dispatch, served_model)
    assert dispatch.jobs[0].sampling.grammar is None


async def test_calls_in_a_stream(client, say):
    say(CALLS)
    message, reason, chunks = await streamed(client, **ASK)
    assert reason == "tool_calls"
    assert message["content"] == "Let me see."
    assert [call[1:] for call in message["tool_calls"]] == [["weather", CITY], ["time", "{}"]]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(bool(c.choices[0].delta.tool_calls) for c in chunks) > 4  # arguments come in pieces


async def test_without_parallel_tool_calls_there_is_one_call(client, say):
    say(CALLS)
    answer = await client.chat.completions.create(**ASK, parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["weather"]
    message, _, _ = await streamed(client, **ASK, parallel_tool_calls=False)
    assert [call[1] for call in message["tool_calls"]] == ["weather"]


async def test_text_stays_text(client, say):
    say("Just 1 < 2.\n")
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Just 1 < 2.\n"
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    message, reason, _ = await streamed(client, **ASK)
    assert (message["content"], reason) == ("Just 1 < 2.\n", "stop")
    say(CALLS)
    for fields in ({"tools": []}, {"tool_choice": "none"}):
        answer = await client.chat.completions.create(**{**ASK, **fields})
        assert answer.choices[0].message.content == CALLS


async def test_a_cut_call_says_length(client, say, dispatch):
    say(CALLS)
    message, reason, _ = await streamed(client, **ASK, max_tokens=len(dispatch.reply) - 45)
    assert reason == "length"
    assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize("stop", ["Zü", '{"city"', "}}\n</tool_call>\n<"])
async def test_a_call_that_a_stop_string_cuts_off_finishes_with_stop(client, say, stop):
    say(CALLS)
    answer = await client.chat.completions.create(**ASK, stop=stop)
    message, reason, _ = await streamed(client, **ASK, stop=stop)
    assert answer.choices[0].finish_reason == reason == "stop"
    calls = answer.choices[0].message.tool_calls or ()
    assert [call.function.arguments for call in calls] == [call[2] for call in message["tool_calls"]]


async def test_a_stop_string_behind_a_call_leaves_it_whole(client, say):
    say(CALLS)
    answer = await client.chat.completions.create(**ASK, stop="</tool_call>")
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [call.function.arguments for call in answer.choices[0].message.tool_calls] == [CITY]
    _, reason, _ = await streamed(client, **ASK, stop="</tool_call>")
    assert reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_of_all_tokens(client, say, dispatch, stream):
    say(CALLS)
    answer = await client.chat.completions.create(**ASK, logprobs=True, stream=stream)
    if stream:
        rows = [e async for c in answer for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    else:
        rows = answer.choices[0].logprobs.content
    assert b"".join(bytes(row.bytes) for row in rows).decode() == CALLS


@pytest.mark.parametrize(
    ("choice", "names", "parallel"),
    [
        ("required", ["weather", "time"], True),
        ({"type": "function", "function": {"name": "time"}}, ["time"], False),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]},
            },
            ["time"],
            True,
        ),
    ],
)
async def test_required_calls_are_a_grammar(client, say, dispatch, choice, names, parallel):
    say('<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>')
    answer = await client.chat.completions.create(**ASK, tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    grammar = dispatch.jobs[0].sampling.grammar
    assert (grammar.kind, grammar.param) == (GrammarKind.CFG, "tools")
    assert [f'\\"name\\": \\"{name}\\"' in grammar.text for name in ("weather", "time")] == [
        name in names for name in ("weather", "time")
    ]
    assert ("{0,15}" in grammar.text) == parallel


ONLY_TIME = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]},
}


async def test_only_allowed_tools_can_be_called(client, say, dispatch):
    say("No.")
    await client.chat.completions.create(**ASK, tool_choice=ONLY_TIME)
    grammar = dispatch.jobs[0].sampling.grammar.text
    assert [f'\\"name\\": \\"{name}\\"' in grammar for name in ("weather", "time")] == [False, True]
    assert "to_call" in grammar


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>',
    "llama3": '{"name": "%s", "parameters": {}}',
    "mistral": '[TOOL_CALLS] [{"name": "%s", "arguments": {}}]',
}


@pytest.mark.parametrize("calls", WRITTEN)
@pytest.mark.parametrize("stream", [False, True])
async def test_only_allowed_tools_can_be_called_in_any_format(client, say, monkeypatch, served_model, calls, stream):
    """Also where a form of output takes the place of the tools' own grammar."""
    monkeypatch.setattr(served_model, "style", OutputStyle(calls=calls))
    for form in ({}, {"response_format": {"type": "json_object"}}):
        for name, is_call in (("weather", False), ("time", True)):
            said = WRITTEN[calls] % name
            say(said)
            asked = {**ASK, **form, "tool_choice": ONLY_TIME}
            if stream:
                message, _, _ = await streamed(client, **asked)
                content, called = message["content"], [call[1] for call in message["tool_calls"]]
            else:
                message = (await client.chat.completions.create(**asked)).choices[0].message
                content = message.content or ""
                called = [call.function.name for call in message.tool_calls or ()]
            assert (content, called) == (("", ["time"]) if is_call else (said, []))


async def test_allowed_tools_give_mistral_a_grammar(client, say, dispatch, monkeypatch, served_model):
    monkeypatch.setattr(served_model, "style", OutputStyle(calls="mistral", marker_id=7))
    say("No.")
    await client.chat.completions.create(**ASK, tool_choice=ONLY_TIME)
    grammar = dispatch.jobs[0].sampling.grammar.text
    assert [f'\\"name\\": \\"{name}\\"' in grammar for name in ("weather", "time")] == [False, True]
    assert "<[7]>" in grammar


async def test_calls_of_strict_functions_follow_their_schema(client, say, dispatch):
    say("No.")
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    await client.chat.completions.create(**{**ASK, "tools": [strict, TIME]})
    assert "to_call" in dispatch.jobs[0].sampling.grammar.text
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    await client.chat.completions.create(**{**ASK, "tools": [strict]}, response_format=form)
    assert dispatch.jobs[1].sampling.grammar.param == "response_format"
    assert "answer: %json" in dispatch.jobs[1].sampling.grammar.text  # it may think first


async def test_history_reaches_the_template(client, say, dispatch, served_model):
    say("Rain.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"<|im_end|>"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    await client.chat.completions.create(**{**ASK, "tools": [], "messages": messages})
    assert prompt(dispatch, served_model) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        '<|im_start|>assistant\n<think>Hm.</think><tool_call>weather{"city": "<|im_end|>"}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
    )
    special = [t for t in dispatch.jobs[0].token_ids if t in served_model.tokenizer.special_ids]
    assert len(special) == 7  # a client's <|im_end|> is none


async def test_a_call_can_be_sent_back_whatever_its_name(client, say):
    say('<tool_call>{"name": "functions.get weather", "arguments": {}}</tool_call>')
    answer = await client.chat.completions.create(**ASK)
    message = answer.choices[0].message
    await client.chat.completions.create(**{**ASK, "messages": [*ASK["messages"], message]})
    asked = {"model": "tiny", "tools": [{"type": "function", **WEATHER["function"]}]}
    answer = await client.responses.create(**asked, input="hello")
    await client.responses.create(**asked, input=[item.model_dump() for item in answer.output])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "time\n"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required", "extra_body": {"guided_regex": "a"}}, "guided_regex"),
    ],
)
async def test_invalid_combinations_are_refused(client, fields, param):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(**{**ASK, **fields})
    assert raised.value.param == param


async def test_markers_that_are_special_tokens_are_found(model_dirs, tmp_path):
    """Mistral's and Llama's markers are special tokens, which other outputs never show."""
    for file in model_dirs["chatml"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    marker = len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]) + 2
    config["added_tokens_decoder"] = {marker: {"content": "[TOOL_CALLS]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = ServedModel.load(FrontFlags(model=str(tmp_path), tool_parser="mistral"))
    tokens = [marker, *model.tokenizer.encode('[{"name"')]
    shown = model.marked_texts.detokenizer(at_start=True)
    hidden = model.token_texts.detokenizer(at_start=True)
    assert "".join(map(shown.push, tokens)) == '[TOOL_CALLS][{"name"'
    assert "".join(map(hidden.push, tokens)) == '[{"name"'
