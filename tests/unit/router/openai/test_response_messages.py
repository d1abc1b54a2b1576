"""The messages that a template gets for the items of /v1/responses."""

import json

import pytest

from router.openai.responses import messages_of
from router.openai.responses_schema import parse_responses

USER = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Well:"}]}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}


def call(number):
    arguments = json.dumps({"n": number})
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": arguments}


def called(number):
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": {"n": number}}}


def output(number):
    return {"type": "function_call_output", "call_id": f"c{number}", "output": [{"type": "input_text", "text": "rain"}]}


def tool(number):
    return {"role": "tool", "tool_call_id": f"c{number}", "content": "rain"}


def assistant(content="", **fields):
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hello", [USER]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]}],
            [USER | {"content": "a\nb"}],
        ),
        ([SAID, SAID], [assistant("Well:"), assistant("Well:")]),
        ([THOUGHT, SAID], [assistant("Well:", reasoning_content="Hm.")]),
        ([THOUGHT, call(1)], [assistant(reasoning_content="Hm.", tool_calls=[called(1)])]),
        (
            [THOUGHT, SAID, call(1), call(2)],
            [assistant("Well:", reasoning_content="Hm.", tool_calls=[called(1), called(2)])],
        ),
        ([call(1), SAID], [assistant(tool_calls=[called(1)]), assistant("Well:")]),
        (
            [call(1), output(1), call(2), output(2)],
            [assistant(tool_calls=[called(1)]), tool(1), assistant(tool_calls=[called(2)]), tool(2)],
        ),
        ([SAID, THOUGHT, SAID], [assistant("Well:"), assistant("Well:", reasoning_content="Hm.")]),
        ([{"type": "reasoning", "summary": []}, SAID], [assistant("Well:")]),
    ],
)
def test_consecutive_items_of_an_assistant_are_one_message(items, messages):
    body = {"model": "m", "input": items if isinstance(items, str) else [USER, *items], "instructions": "Be brief."}
    before = [{"role": "system", "content": "Be brief."}, *([] if isinstance(items, str) else [USER])]
    assert messages_of(parse_responses(json.dumps(body).encode())) == [*before, *messages]
