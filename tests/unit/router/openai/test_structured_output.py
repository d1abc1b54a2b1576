"""Forms of output in a body: how each is converted, and what is refused, under which name."""

import json

import pytest

from baton.errors import InvalidRequest
from baton.model_dir import ModelFacts
from baton.request import Grammar, GrammarKind
from router.openai.chat_schema import parse_chat
from router.openai.completion_schema import Reader
from router.openai.sampling import sampling_params
from router.openai.structured_output import MAX_DEPTH, grammar_of
from router.openai.tool_schema import tools_of

FACTS = ModelFacts(512, 512, frozenset({2}))
SCHEMA = {"type": "object", "properties": {"z": {}, "a": {"enum": ["\u00e4", "b"]}}}
ANY_OBJECT = '{"type":"object"}'
parse_completion = Reader().parse


def grammar(fields, parse=parse_chat):
    about = {"messages": [{"role": "user", "content": "x"}]} if parse is parse_chat else {"prompt": "x"}
    body = parse(json.dumps({"model": "m"} | about | fields).encode())
    return sampling_params(body, 5, FACTS, 512, grammar_of(body)).grammar


def nested(depth):
    return {"items": nested(depth - 1)} if depth else {}


def test_how_deep_a_schema_may_be_does_not_depend_on_the_parser():
    assert grammar({"guided_json": nested(MAX_DEPTH - 1)}).text == json.dumps(nested(MAX_DEPTH - 1))
    many = {"properties": {f"p{i}": {"enum": ["{", "["]} for i in range(MAX_DEPTH)}}
    assert grammar({"guided_json": many}).kind is GrammarKind.JSON_SCHEMA
    tool = {"type": "function", "function": {"name": "f", "parameters": nested(MAX_DEPTH)}}
    for fields in ({"guided_json": nested(MAX_DEPTH)}, {"guided_json": json.dumps(nested(MAX_DEPTH))}):
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            grammar(fields)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        tools_of(parse_chat(json.dumps(body).encode()).tools, None, parallel=None)


def named(**more):
    return {"type": "json_schema", "json_schema": {"name": "answer"} | more}


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA, ANY_OBJECT),
        ({"response_format": named(schema=SCHEMA, strict=True)}, GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ({"response_format": named(description="what it is")}, GrammarKind.JSON_SCHEMA, ANY_OBJECT),
        ({"guided_json": SCHEMA}, GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ({"guided_regex": "a+|b"}, GrammarKind.REGEX, "a+|b"),
        ({"guided_choice": ["yes", "\u00e4"]}, GrammarKind.CHOICE, '["yes","\u00e4"]'),
        ({"guided_grammar": 'start: "a"'}, GrammarKind.CFG, 'start: "a"'),
        ({"regex": "a+|b"}, GrammarKind.REGEX, "a+|b"),
        ({"guided_regex": "a", "regex": "a"}, GrammarKind.REGEX, "a"),
        ({"ebnf": 'root ::= "a"'}, GrammarKind.CFG, 'root ::= "a"'),
        ({"structured_outputs": {"json": SCHEMA}}, GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ({"structured_outputs": {"regex": "a"}}, GrammarKind.REGEX, "a"),
        ({"structured_outputs": {"choice": ["a"]}}, GrammarKind.CHOICE, '["a"]'),
        ({"structured_outputs": {"grammar": "start: /a/"}}, GrammarKind.CFG, "start: /a/"),
        ({"structured_outputs": {"json_object": True}}, GrammarKind.JSON_SCHEMA, ANY_OBJECT),
        ({"guided_regex": "a", "response_format": {"type": "text"}, "guided_json": None}, GrammarKind.REGEX, "a"),
        ({"guided_grammar": "a", "structured_outputs": {"grammar": "a"}}, GrammarKind.CFG, "a"),  # the same twice
        ({"guided_regex": "a", "guided_decoding_backend": "xgrammar"}, GrammarKind.REGEX, "a"),
    ],
)
def test_each_form_becomes_a_grammar_under_its_name(fields, kind, text, parse):
    assert grammar(fields, parse) == Grammar(kind, text, next(iter(fields)))


@pytest.mark.parametrize(
    "given", [{}, {"response_format": {"type": "text"}}, {"response_format": None}, {"guided_json": None}]
)
def test_no_form_is_no_grammar(given):
    assert grammar(given) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "secret"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": named(name="a secret")}, "response_format.json_schema.name"),
        ({"response_format": named(name="x\n")}, "response_format.json_schema.name"),
        ({"response_format": named(schema=["secret"])}, "response_format"),
        ({"response_format": named(unknown=1)}, "response_format.json_schema.unknown"),
        ({"guided_json": "secret"}, "guided_json"),
        ({"guided_json": 7}, "guided_json"),
        ({"guided_json": {"a": "x" * 65_536}}, "guided_json"),
        ({"guided_json": json.dumps({"a": "x" * 65_536})}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "x" * 65_537}, "guided_regex"),
        ({"guided_regex": "\u00e4" * 32_769}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ({"guided_choice": ["a"] * 4097}, "guided_choice"),
        ({"guided_choice": ["secret" * 20] * 4096}, "guided_choice"),
        ({"guided_grammar": 7}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"secret": 1}}, "structured_outputs.secret"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_choice": ["a"], "guided_json": {}}, "guided_choice"),
        ({"structured_outputs": {"regex": "b"}, "guided_regex": "a"}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "a"}, "guided_regex": "a"}, "structured_outputs"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_errors_name_the_parameter(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        grammar(fields)
    assert caught.value.param == param
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("value", ["[" * 100_000, '"\\ud800"', '{"a": ' * 5000 + "1" + "}" * 5000])
def test_no_text_breaks_the_parser(value):
    for field in ("guided_json", "guided_regex", "response_format"):
        body = b'{"model": "m", "prompt": "x", "%s": %s}' % (field.encode(), value.encode())
        try:
            grammar_of(parse_completion(body))
        except InvalidRequest:
            continue
        assert field == "guided_json"


@pytest.mark.parametrize("schema", [b'{"enum": ["\xed\xa0\xbd"]}', b'"\xed\xa0\xbd"', b'"{\xff}"'])
def test_a_schema_that_is_not_utf8_is_refused(schema):
    for fields, param in (
        (b'"guided_json": %s', "guided_json"),
        (b'"structured_outputs": {"json": %s}', "structured_outputs"),
        (b'"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}', "response_format"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            grammar_of(parse_completion(b'{"model": "m", "prompt": "x", ' + fields % schema + b"}"))
        assert caught.value.param == param
