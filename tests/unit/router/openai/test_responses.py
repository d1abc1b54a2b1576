"""/v1/responses as OpenAI's own client sees it."""

import asyncio

import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseStreamEvent
from pydantic import TypeAdapter

from baton.errors import NoCapacity
from baton.process.settings import FrontFlags
from baton.request import GrammarKind
from router.openai.served_model import ServedModel

REPLY = "Größe 🎉 and some more words, to be streamed."
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def served_model(model_dirs):
    flags = FrontFlags(
        model=str(model_dirs["chatml"]), served_model_name=("tiny",), tool_parser="hermes", reasoning_parser="think"
    )
    return ServedModel.load(flags)


def prompt(dispatch, served_model):
    return served_model.tokenizer.decode(dispatch.jobs[-1].token_ids, special=True)


async def test_text(client, dispatch, served_model):
    answer = await client.responses.create(
        model="tiny", instructions="Be brief.", input="hello", temperature=0, metadata={"a": "b"}, user="u", store=True
    )
    assert answer.output_text == REPLY
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    told = answer.to_dict()
    assert [told[name] for name in ("metadata", "temperature", "store")] == [{"a": "b"}, 0, False]
    assert (answer.instructions, answer.top_p, answer.tool_choice) == ("Be brief.", 1, "auto")
    assert answer.usage.input_tokens == len(dispatch.jobs[0].token_ids)
    assert answer.usage.output_tokens == len(dispatch.reply) + 1
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert prompt(dispatch, served_model) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_items_become_messages(client, dispatch, served_model):
    first = await client.responses.create(model="tiny", input=[{"role": "user", "content": "hello"}])
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "one"},
        *(item.model_dump() for item in first.output),
        ResponseFunctionToolCall(
            type="function_call", call_id="c1", name="weather", arguments="{}", id="fc_1", status="completed"
        ).model_dump(),
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    await client.responses.create(model="tiny", input=items)
    assert prompt(dispatch, served_model) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
        f"<|im_start|>assistant\n{REPLY}<|im_end|>\n"
        "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_answers_and_events_have_all_that_the_client_declares(router, say):
    """The client builds its types without checking for missing fields, and fails when such a field is read."""
    say(f"<think>Hm.</think>Well: {CALL}")
    body = {"model": "tiny", "input": "hello", "tools": [TOOL], "include": ["message.output_text.logprobs"]}
    Response.model_validate((await router.client.post("/v1/responses", json=body)).json())
    answer = await router.client.post("/v1/responses", json={**body, "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(events) > 10
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_json(event)


NEUTRAL = {
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "reasoning": {"effort": "max", "mode": "standard", "context": "auto"},
    "input": [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}],
        }
    ],
    "moderation": None,
}


async def test_neutral_values_of_newer_fields_are_accepted_and_others_refused(router):
    assert (await router.client.post("/v1/responses", json={"model": "tiny", **NEUTRAL})).status_code == 200
    for name, value in (("moderation", {"model": "m"}), ("background_options", {}), ("image", {})):
        answer = await router.client.post("/v1/responses", json={"model": "tiny", "input": "a", name: value})
        assert answer.status_code == 400
        assert answer.json()["error"] | {"message": ""} == {
            "message": "",
            "type": "invalid_request_error",
            "param": name,
            "code": "unsupported_parameter",
        }


async def events_of(client, **fields):
    events = [event async for event in await client.responses.create(model="tiny", stream=True, **fields)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


async def test_a_stream_of_text(client):
    events = await events_of(client, input="hello")
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == events[-1].response.output_text == REPLY
    assert events[0].response.status == "in_progress"
    assert events[0].response.id == events[-1].response.id
    assert {(event.item_id, event.content_index) for event in events[3:-2]} == {(events[-1].response.output[0].id, 0)}
    assert events[-1].response.usage.output_tokens > 5


async def test_a_stream_of_reasoning_text_and_calls(client, say, dispatch):
    say(f"<think>\nHm.\n</think>\n\nWell:\n{CALL}\n{CALL}")
    events = await events_of(client, input="hello", tools=[TOOL])
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in events[-1].response.output]
    assert done[0].content[0].text == "Hm."
    assert not any(e.item.to_dict().get("content") for e in events if e.type == "response.output_item.added")
    assert events[-1].response.output_text == "Well:"
    for index in (2, 3):
        about = [event for event in events if getattr(event, "output_index", None) == index]
        kinds = [event.type.removeprefix("response.") for event in about]
        assert (kinds[0], kinds[-2:]) == ("output_item.added", ["function_call_arguments.done", "output_item.done"])
        assert about[0].item.arguments == ""
        assert "".join(event.delta for event in about[1:-2]) == about[-2].arguments == '{"city": "Rome"}'
    assert done[2].call_id != done[3].call_id
    assert 0 < events[-1].response.usage.output_tokens_details.reasoning_tokens < len(dispatch.reply) / 2
    whole = await client.responses.create(model="tiny", input="hello", tools=[TOOL])
    assert [item.type for item in whole.output] == [item.type for item in done]
    assert whole.output[3].arguments == '{"city": "Rome"}'


async def test_length_is_incomplete(client):
    answer = await client.responses.create(model="tiny", input="hello", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    events = await events_of(client, input="hello", max_output_tokens=3)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == answer.output_text


async def test_only_a_call_that_is_cut_off_is_incomplete(client, say, dispatch):
    say(f'{CALL}\n<tool_call>{{"name": "weather", "arguments": {{')
    fields = {"input": "hello", "tools": [TOOL], "max_output_tokens": len(dispatch.reply)}
    events = await events_of(client, **fields)
    assert [item.status for item in events[-1].response.output] == ["completed", "incomplete"]
    say(f'<tool_call>{{"name": "weather", "arguments": {{ oops </tool_call>{CALL}')
    whole = await client.responses.create(model="tiny", input="hello", tools=[TOOL])
    assert [item.status for item in whole.output] == ["incomplete", "completed"]


async def test_an_answer_without_text_has_an_empty_message(client, dispatch):
    dispatch.script = lambda job, sink, handle: dispatch.say(job, sink, handle, [dispatch.eos])
    answer = await client.responses.create(model="tiny", input="hello")
    assert (answer.output[0].type, answer.output[0].content[0].text) == ("message", "")


async def test_text_format_and_tool_choice(client, dispatch):
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    answer = await client.responses.create(model="tiny", input="hello", text={"format": form})
    assert (dispatch.jobs[-1].sampling.grammar.param, answer.text.format.name) == ("text.format", "n")
    for choice in ("required", {"type": "function", "name": "weather"}):
        answer = await client.responses.create(model="tiny", input="hello", tools=[TOOL], tool_choice=choice)
        assert answer.to_dict()["tool_choice"] == choice
        grammar = dispatch.jobs[-1].sampling.grammar
        assert (grammar.kind, grammar.param) == (GrammarKind.CFG, "tools")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("around", ["%s", f"<think>Hm.</think>\n%s{CALL}"])
async def test_logprobs_are_of_the_text(client, say, stream, around):
    say(around % REPLY)
    fields = {"model": "tiny", "input": "hello", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = await client.responses.create(**fields, tools=[TOOL], stream=stream)
    if stream:
        rows = [row for e in [e async for e in answer] if e.type == "response.output_text.delta" for row in e.logprobs]
    else:
        rows = next(item for item in answer.output if item.type == "message").content[0].logprobs
    assert b"".join(bytes(row.to_dict()["bytes"]) for row in rows).decode() == REPLY


async def test_a_failure_before_and_after_the_first_token(client, dispatch):
    async def fail(job, sink, handle, after=0):
        for token in dispatch.reply[:after]:
            await asyncio.sleep(0)
            sink.on_tokens([token], None)
        sink.on_error(NoCapacity("no node"))

    dispatch.script = fail
    with pytest.raises(openai.InternalServerError) as raised:
        await client.responses.create(model="tiny", input="hello", stream=True)
    assert raised.value.status_code == 503
    dispatch.script = lambda job, sink, handle: fail(job, sink, handle, 5)
    events = await events_of(client, input="hello")
    assert events[-1].type == "response.failed"
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert events[-1].response.error.message == "no node"
    assert events[-1].response.output_text == "".join(e.delta for e in events if "delta" in e.type) != ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": "a " * 5000}, "input"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
    ],
)
async def test_unsupported_features_are_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.responses.create(**{"model": "tiny", "input": "hello", **fields})
    assert raised.value.param == param
    assert "max_completion_tokens" not in raised.value.body["message"]  # the name in chats
