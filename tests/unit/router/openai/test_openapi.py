"""The OpenAPI document is correct: real answers are validated against the types that it is generated from."""

import array
import json
import re

import msgspec
import pytest
from jsonschema import Draft202012Validator

from baton.process.settings import FrontFlags
from baton.request import FinishReason
from router.job import PromptResult
from router.openai import answer_schema as answers
from router.openai import openapi
from router.openai.response_schema import Response
from router.openai.served_model import ServedModel

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d"}}]
SAID = '<think>Hm.</think>Well: <tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def served_model(model_dirs):
    flags = FrontFlags(
        model=str(model_dirs["chatml"]),
        served_model_name=("tiny", "alias"),
        tool_parser="hermes",
        reasoning_parser="think",
    )
    return ServedModel.load(flags)


@pytest.fixture
async def document(router):
    return (await router.client.get("/openapi.json")).json()


def test_every_reference_leads_somewhere():
    document = openapi.document("0", ["m"], 100, framed=False)
    names = set(re.findall(r'"#/components/schemas/([^"]*)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    assert not any("." in name for name in document["components"]["schemas"])  # no two types share a name


async def test_every_path_is_described_and_served(router, document):
    assert set(router.app._handlers) == {path for path, item in document["paths"].items() if "post" in item}
    for path, item in document["paths"].items():
        path = path.replace("{model}", "tiny")
        for method, operation in item.items():
            if method in ("get", "post"):
                answer = await router.client.request(method, path)
                assert str(answer.status_code) in operation["responses"]
        wrong = await router.client.delete(path)
        assert (wrong.status_code, wrong.headers["allow"].split(", ")[0].lower() in item) == (405, True)
        msgspec.json.decode(wrong.content, type=answers.Error)


async def test_bodies_name_the_model_and_know_its_vocabulary(document):
    schemas = document["components"]["schemas"]
    assert schemas["ChatBody"]["properties"]["model"] == {"enum": ["tiny", "alias"]}
    assert schemas["TokenizeBody"]["properties"]["model"] == {"enum": ["tiny", "alias", None]}
    assert schemas["DetokenizeBody"]["properties"]["tokens"]["items"]["maximum"] == 1023
    assert schemas["ChatBody"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/score", {"model": "tiny", "text_1": "a", "text_2": "b", "truncate_prompt_tokens": 0},
         "truncate_prompt_tokens"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/v1/chat/completions", {**CHAT, "stop_token_ids": [1024]}, "stop_token_ids"),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "stop_token_ids": [1024]}, "stop_token_ids"),
    ],
)  # fmt: skip
async def test_what_is_always_refused_does_not_match_the_schema(router, document, path, body, param):
    error = (await router.client.post(path, json=body)).json()["error"]
    assert error["param"] == param
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": document["components"]})
    assert [found.absolute_path[0] for found in validator.iter_errors(body)] == [param]
    del body[param]
    assert validator.is_valid(body)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/chat/completions", CHAT, answers.ChatCompletion),
        ("/v1/chat/completions", {**CHAT, "tools": TOOLS, "n": 2}, answers.ChatCompletion),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}, answers.ChatCompletion),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "logprobs": 1}, answers.Completion),
        ("/v1/responses", {"model": "tiny", "input": "hello"}, Response),
        (
            "/v1/responses",
            {
                "model": "tiny",
                "input": [{"role": "user", "content": "hello"}],
                "tools": [{"type": "function", "name": "f", "parameters": {}}],
                "text": {"format": {"type": "text"}, "verbosity": "low"},
                "include": ["message.output_text.logprobs"],
                "reasoning": {"effort": "low"},
            },
            Response,
        ),
        ("/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 2}, Response),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, answers.Tokens),
        ("/detokenize", {"tokens": [5]}, answers.Detokenized),
        ("/v1/chat/completions", {**CHAT, "foo": 1}, answers.Error),
        ("/v1/models", None, answers.Models),
        ("/v1/models/alias", None, answers.Model),
        ("/health", None, answers.Readiness),
    ],
)
async def test_answers_are_of_the_types_described(router, dispatch, served_model, path, body, kind):
    dispatch.reply = served_model.tokenizer.encode(SAID)
    answer = await (router.client.get(path) if body is None else router.client.post(path, json=body))
    msgspec.json.decode(answer.content, type=kind)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"]}, answers.Embeddings),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "base64"}, answers.Embeddings),
        ("/v1/score", {"model": "tiny", "text_1": "a", "text_2": "b"}, answers.Scores),
    ],
)
async def test_answers_made_of_embeddings_are_too(router, dispatch, path, body, kind):
    async def embed(job, sink, handle):
        sink.on_prompt(PromptResult([], array.array("f", [0.5, 1.0]).tobytes()))
        sink.on_finish(FinishReason.LENGTH, handle.usage)

    dispatch.script = embed
    answer = await router.client.post(path, json=body)
    msgspec.json.decode(answer.content, type=kind)
