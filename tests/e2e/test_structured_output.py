"""Structured output as a client has it: the default model, on a prefill and a decode node, through HTTP."""

import concurrent.futures
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import openai
import pytest

from baton.model_source import DEFAULT_MODEL
from tests.e2e.local_fleet import LocalFleet, started

QUESTION: list[Any] = [{"role": "user", "content": "What does itertools.chain do?"}]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    fleet = started(tmp_path_factory.mktemp("fleet"), DEFAULT_MODEL)
    yield fleet
    fleet.baton("down")


@pytest.fixture(scope="module")
def client(fleet: LocalFleet) -> openai.OpenAI:
    return fleet.client()


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    kind: Literal["function", "class"]
    arguments: list[int]


class Node(msgspec.Struct, forbid_unknown_fields=True):
    value: bool | None
    next: "Node | None" = None


SCHEMAS: list[tuple[dict[str, Any], Any]] = [
    (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "kind": {"enum": ["function", "class"]},
                "arguments": {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "maxItems": 4},
            },
            "required": ["name", "kind", "arguments"],
            "additionalProperties": False,
        },
        Answer,
    ),
    (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"value": {"type": ["boolean", "null"]}, "next": {"$ref": "#/$defs/node"}},
                    "required": ["value"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/node",
        },
        Node,
    ),
    ({"type": "array", "items": {"const": "x"}, "minItems": 2, "maxItems": 5}, list[Literal["x"]]),
]


def response_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize(("schema", "kind"), SCHEMAS, ids=["flat", "recursive", "array"])
def test_a_schema_is_followed_whatever_the_seed(client: openai.OpenAI, schema: dict[str, Any], kind: Any):
    for seed in range(3):
        options: dict[str, Any] = {
            "model": "model",
            "messages": QUESTION,
            "response_format": response_format(schema),
            "seed": seed,
            "n": 2,
            "max_tokens": 800,
        }
        whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
        texts = [choice.message.content or "" for choice in whole.choices]
        for choice in whole.choices:
            assert choice.finish_reason == "stop"
            msgspec.json.decode(choice.message.content or "", type=kind)
            assert choice.logprobs is not None
        streamed = ["", ""]
        for chunk in client.chat.completions.create(**options, stream=True):
            for part in chunk.choices:
                streamed[part.index] += part.delta.content or ""
        assert streamed == texts


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": r"[a-z]{1,9}\.[a-z]{1,9}\(\)"}, r"[a-z]{1,9}\.[a-z]{1,9}\(\)"),
    ({"guided_choice": ["an iterator", "a list", "日本"]}, "an iterator|a list|日本"),
    ({"guided_grammar": 'root ::= "(" digit ("," digit)? ")"\ndigit ::= [0-9]'}, r"\([0-9](,[0-9])?\)"),
    ({"guided_grammar": 'start: "<" WORD (" " WORD)~1..3 ">"\nWORD: /[a-z]{1,8}/'}, r"<[a-z]{1,8}( [a-z]{1,8}){1,3}>"),
    ({"guided_json": {"type": "boolean"}}, "true|false"),
    ({"structured_outputs": {"regex": "(yes|no)!?"}}, "(yes|no)!?"),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS, ids=[str(i) for i in range(len(FORMS))])
def test_the_other_forms_are_followed_in_chats_and_completions(
    client: openai.OpenAI, form: dict[str, Any], pattern: str
):
    chat = client.chat.completions.create(model="model", messages=QUESTION, max_tokens=200, extra_body=form)
    plain = client.completions.create(
        model="model", prompt="The answer is ", max_tokens=200, temperature=0, extra_body=form
    )
    assert (chat.choices[0].finish_reason, plain.choices[0].finish_reason) == ("stop", "stop")
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    assert re.fullmatch(pattern, plain.choices[0].text)


def test_any_object_is_an_object(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model="model", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=1000, seed=4
    )
    text = reply.choices[0].message.content or ""
    assert text.startswith("{")
    assert reply.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict)


def test_constrained_and_plain_requests_share_batches(client: openai.OpenAI):
    def ask(i: int) -> str:
        form = FORMS[i % len(FORMS)][0] if i % 2 else {}
        reply = client.chat.completions.create(
            model="model", messages=QUESTION, max_tokens=60, temperature=0, extra_body=form
        )
        return reply.choices[0].message.content or ""

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(32)))
    assert len(set(texts[::2])) == 1
    assert all(re.fullmatch(FORMS[i % len(FORMS)][1], texts[i]) for i in range(1, 32, 2))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": response_format({"not": {}})}, "response_format"),
    ({"guided_regex": "(a"}, "guided_regex"),
    ({"guided_regex": "a?" * 30_000}, "guided_regex"),
    ({"guided_grammar": "start: a0\n" + "".join(f'a{i}: a{i + 1} "x"?\n' for i in range(3000))}, "guided_grammar"),
    ({"structured_outputs": {"grammar": "start: start"}}, "structured_outputs"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_a_400_and_disturbs_nobody(fleet: LocalFleet, client: openai.OpenAI, stream: bool):
    pids = {one.id: one.pid for one in fleet.nodes().values()}
    bystander = client.chat.completions.create(model="model", messages=QUESTION, max_tokens=300, stream=True)
    for form, param in REFUSED:
        began = time.monotonic()
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="model", messages=QUESTION, stream=stream, extra_body=form)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
        assert time.monotonic() - began < 30  # half a second on a quiet machine, minutes without limits
    assert list(bystander)[-1].choices[0].finish_reason in ("stop", "length")
    assert {one.id: one.pid for one in fleet.nodes().values()} == pids


def test_a_request_goes_on_in_its_grammar_when_its_node_dies(fleet: LocalFleet, client: openai.OpenAI):
    options: dict[str, Any] = {
        "model": "model",
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 800,
        "extra_body": {"guided_regex": r"([a-z]{1,8} [0-9]{1,4}; ){60}end"},
    }
    undisturbed = client.chat.completions.create(**options).choices[0]
    assert undisturbed.finish_reason == "stop"
    text, killed = "", False
    for chunk in client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
        if not killed and len(text) > 60:
            killed = True
            decode = next(one for one in fleet.nodes().values() if one.role == "decode")
            os.kill(decode.pid or 0, signal.SIGKILL)
    assert killed
    assert re.fullmatch(r"([a-z]{1,8} [0-9]{1,4}; ){60}end", text)
    assert text == undisturbed.message.content


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/City"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


class Weather(msgspec.Struct, forbid_unknown_fields=True):
    city: Literal["Rome", "Oslo"]
    days: int


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_model_that_knows_no_tools_calls_them_where_it_has_to(client: openai.OpenAI, choice: Any) -> None:
    named = choice != "required"
    for seed in range(3):
        with client.chat.completions.stream(
            model="model", messages=QUESTION, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=400
        ) as stream:
            answer = stream.get_final_completion().choices[0]
        assert answer.finish_reason == "tool_calls"
        assert not answer.message.content
        for call in answer.message.tool_calls or pytest.fail("no call"):
            if named or call.function.name == "weather":
                msgspec.json.decode(call.function.arguments, type=Weather)
            else:
                assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})


def test_a_schema_that_cannot_be_followed_is_a_fault_of_the_tools(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]
    for ask in (
        lambda: client.chat.completions.create(model="model", messages=QUESTION, tools=tools, tool_choice="required"),
        lambda: client.responses.create(
            model="model", input="x", tools=[{"type": "function", **tools[0]["function"]}], tool_choice="required"
        ),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            ask()
        assert raised.value.param == "tools"
