"""Grammars of calls, compiled by the engine's compiler: what they accept, and what they refuse."""

import json
from pathlib import Path

import pytest
from llguidance import LLMatcher

from baton.errors import InvalidRequest
from baton.model_dir import eos_token_ids
from baton.request import Grammar, GrammarKind
from baton.text.tokenizer import Tokenizer
from engine.grammar import tokens
from engine.grammar.text import serialized
from router.openai.parsing.style import OutputStyle
from router.openai.tool_grammar import after_thinking, calls_grammar, strict_grammar
from router.openai.tool_schema import ToolSpec

MODEL = Path(__file__).parents[4] / "examples" / "pydoc_chat" / "model"
CITIES = {"enum": ["Rome", "Oslo"]}
WEATHER = ToolSpec(
    name="weather",
    description=None,
    parameters={
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": CITIES},
    },
    strict=True,
)
TIME = ToolSpec(name="time", description=None, parameters=None, strict=False)
TOOLS = [WEATHER, TIME]
W, T = {"city": "Rome"}, {}

WRITTEN = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": %s}\n</tool_call>',
    "llama3": '{"name": "weather", "parameters": %s}; {"name": "time", "parameters": %s}',
    "mistral": '[{"name": "weather", "arguments": %s}, {"name": "time", "arguments": %s}]',
    "": '[{"name": "weather", "arguments": %s}, {"name": "time", "arguments": %s}]',
}


@pytest.fixture(scope="module")
def accepts():
    vocab_size = json.loads((MODEL / "config.json").read_text())["vocab_size"]
    known = tokens.load(MODEL, vocab_size, eos_token_ids(MODEL))
    tokenizer = Tokenizer.load(MODEL)

    def accepts(grammar, text, *, special=False):
        matcher = LLMatcher(known.tokenizer, serialized(grammar), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        token_ids = tokenizer.encode_chat(text) if special else tokenizer.encode(text)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()

    return accepts


@pytest.mark.parametrize("calls", sorted(WRITTEN))
def test_calls_follow_their_schemas(accepts, calls):
    style = OutputStyle(calls=calls)
    grammar = calls_grammar(style, TOOLS, parallel=True, opened=False)
    assert accepts(grammar, WRITTEN[calls] % (json.dumps(W), json.dumps(T)))
    assert not accepts(grammar, WRITTEN[calls] % (json.dumps({"city": "Bonn"}), json.dumps(T)))
    assert not accepts(grammar, WRITTEN[calls] % (json.dumps(W), json.dumps({"a": 1})))
    assert not accepts(grammar, "Rome")
    assert not accepts(grammar, "")
    single = calls_grammar(style, TOOLS, parallel=False, opened=False)
    assert not accepts(single, WRITTEN[calls] % (json.dumps(W), json.dumps(T)))


@pytest.mark.parametrize("calls", sorted(WRITTEN))
def test_outputs_that_a_grammar_accepts_can_be_parsed(calls):
    style = OutputStyle(calls=calls)
    parser = style.parser({"weather", "time"}, forced=True, parallel=True, reasons=False, opened=False, free=False)
    parts = [*parser.push(WRITTEN[calls] % (json.dumps(W), json.dumps(T))), *parser.finish()]
    assert [part.name for part in parts if hasattr(part, "name")] == ["weather", "time"]
    assert json.loads("".join(part.text for part in parts[:2] if hasattr(part, "text"))) == W


def test_a_model_that_thinks_may_do_so_first(accepts):
    style, call = OutputStyle(calls="", thinks=True), '[{"name": "time", "arguments": {}}]'
    begins = calls_grammar(style, TOOLS, parallel=True, opened=False)
    goes_on = calls_grammar(style, TOOLS, parallel=True, opened=True)
    assert accepts(begins, call)
    assert accepts(begins, f"<think>\nHm, a < b.\n</think>\n\n{call}")
    assert accepts(goes_on, f"Hm.</think>{call}")
    assert not accepts(goes_on, call)
    schema, thinks = after_thinking(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(CITIES), "p"), style, opened=False)
    assert thinks
    assert accepts(schema, '<think>Hm.</think>"Rome"')
    assert not accepts(schema, '<think>Hm.</think>"Bonn"')
    regex = Grammar(GrammarKind.REGEX, "a", "p")
    assert after_thinking(regex, style, opened=False) == (regex, False)


def test_strict_calls_among_free_text(accepts):
    grammar = strict_grammar(OutputStyle(calls="hermes"), TOOLS, opened=False)
    call = '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'
    assert accepts(grammar, "Just text, 1 < 2.")
    assert accepts(grammar, f"Well:\n{call % json.dumps(W)}\nand more")
    assert accepts(grammar, '<tool_call>\n{"name": "time", "arguments": {"a": [1]}}\n</tool_call>')  # not strict
    assert not accepts(grammar, f"Well:\n{call % json.dumps({'city': 'Bonn'})}")
    assert not accepts(grammar, "<tool_call> not a call")
    assert strict_grammar(OutputStyle(calls="llama3"), TOOLS, opened=False) is None


@pytest.mark.parametrize("marker_id", [None, 1])
def test_strict_calls_among_free_text_in_a_list(accepts, marker_id):
    """The marker of `mistral` is a special token or spelled."""
    grammar = strict_grammar(OutputStyle(calls="mistral", marker_id=marker_id), TOOLS, opened=False)
    weather, clock = '{"name": "weather", "arguments": %s}', '{"name": "time", "arguments": {}}'
    for marker in ("[TOOL_CALLS]", "<|im_start|>") if marker_id else ("[TOOL_CALLS]",):
        assert accepts(grammar, f"Well: {marker} [{weather % json.dumps(W)}, {clock}]", special=True)
        assert accepts(grammar, f"{marker}[{clock}] and more", special=True)
        assert not accepts(grammar, f"{marker} [{weather % json.dumps({'city': 'Bonn'})}]", special=True)
        assert not accepts(grammar, f"{marker} [{clock}, {clock.replace('time', 'date')}]", special=True)
        assert not accepts(grammar, f"{marker} not a call", special=True)
    assert accepts(grammar, "Just text, [1 < 2].")


def test_schemas_are_bounded():
    huge = ToolSpec(name="f", description=None, parameters={"x": "y" * 70_000}, strict=False)
    with pytest.raises(InvalidRequest) as raised:
        calls_grammar(OutputStyle(), [huge], parallel=True, opened=False)
    assert raised.value.param == "tools"


@pytest.mark.parametrize("style", ["hermes", ""])
def test_only_arguments_that_the_schema_names_are_accepted(accepts, style):
    """As with vLLM, also where the schema does not forbid others."""
    parameters = {"type": "object", "properties": {"a": {"type": "null"}}}
    tool = ToolSpec(name="f", description=None, parameters=parameters, strict=False)
    form = '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>' if style else '[{"name": "f", "arguments": %s}]'
    grammar = calls_grammar(OutputStyle(calls=style, thinks=False), [tool], parallel=False, opened=False)
    assert [accepts(grammar, form % text) for text in ('{"a":null}', '{"a":null,"b":1}')] == [True, False]
