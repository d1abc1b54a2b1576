"""Reasoning as OpenAI's own client sees it: split off, switched, and taken back."""

import pytest

from tests.unit.router.openai.tools.asking import ASK, CALLS, WEATHER, prompt, streamed

pytestmark = pytest.mark.anyio


async def test_reasoning_is_split_off(client, say, dispatch, served_model):
    say(f"<think>\nHm, hm.\n</think>\n\n{CALLS}")
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.reasoning_content == "Hm, hm."
    assert answer.choices[0].message.content == "Let me see."
    assert len(answer.choices[0].message.tool_calls) == 2
    message, reason, _ = await streamed(client, **ASK)
    assert (message["reasoning_content"], message["content"], reason) == ("Hm, hm.", "Let me see.", "tool_calls")
    answer = await client.chat.completions.create(**{**ASK, "tools": []}, reasoning_effort="none")
    assert prompt(dispatch, served_model).endswith("<think></think>")
    assert answer.choices[0].message.reasoning_content == "Hm, hm."


async def test_a_call_ends_reasoning_that_the_model_has_not_closed(client, say, dispatch):
    say(f"<think>\nHm.\n{CALLS}")
    message, reason, _ = await streamed(client, **ASK)
    assert (message["reasoning_content"], message["content"], reason) == ("Hm.\nLet me see.", "", "tool_calls")
    assert [call[1] for call in message["tool_calls"]] == ["weather", "time"]
    for fields in ({"tools": []}, {"tool_choice": "required"}):  # nothing to call; the grammar wants an end
        answer = await client.chat.completions.create(**{**ASK, **fields})
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.reasoning_content == f"Hm.\n{CALLS}"


@pytest.mark.parametrize(
    ("fields", "is_off"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"thinking": False, "preserve_thinking": None}}, False),
        ({"chat_template_kwargs": {}, "reasoning_effort": "none"}, True),
    ],
)
async def test_thinking_is_switched_as_clients_of_other_servers_do(client, dispatch, served_model, fields, is_off):
    await client.chat.completions.create(**ASK, extra_body=fields)
    assert prompt(dispatch, served_model).endswith("<think></think>") is is_off
    effort = fields.get("reasoning_effort")
    more = {"chat_template_kwargs": fields["chat_template_kwargs"]} | (
        {"reasoning": {"effort": effort}} if effort else {}
    )
    await client.responses.create(model="tiny", input="hello", extra_body=more)
    assert prompt(dispatch, served_model).endswith("<think></think>") is is_off


@pytest.mark.parametrize(
    "form",
    [
        {"tool_choice": "required"},
        {"tools": [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]},
        {"tools": [], "response_format": {"type": "json_object"}},
    ],
)
async def test_a_grammar_has_no_reasoning_when_thinking_is_switched_off(client, dispatch, form):
    for effort in ("high", "none"):
        await client.chat.completions.create(**{**ASK, **form}, reasoning_effort=effort)
    on, off = (job.sampling.grammar.text for job in dispatch.jobs)
    assert "think" in on
    assert "think" not in off


async def test_tokenize_switches_thinking_as_chats_do(router, served_model):
    body = {"messages": ASK["messages"], "chat_template_kwargs": {"enable_thinking": False}}
    answer = await router.client.post("/tokenize", json=body)
    assert served_model.tokenizer.decode(answer.json()["tokens"], special=True).endswith("<think></think>")


async def test_reasoning_in_the_history_is_accepted_by_either_name(client, dispatch, served_model):
    for name in ("reasoning_content", "reasoning"):
        said = {"role": "assistant", "content": "Yes.", name: "Hm."}
        await client.chat.completions.create(**{**ASK, "messages": [*ASK["messages"], said]})
        assert "<think>Hm.</think>Yes." in prompt(dispatch, served_model)
