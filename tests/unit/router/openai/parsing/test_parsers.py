"""Each format as models write it, with every output split in every possible way."""

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.openai.parsing.calls import HermesParser, LlamaParser, MistralParser
from router.openai.parsing.parts import CallArguments, CallBegin, CallEnd, Content, PlainParser, Reasoning
from router.openai.parsing.reasoning import ReasoningParser
from router.openai.parsing.style import CALL_BEGINS, OutputStyle

NAMES = ("weather", "time")
ARGUMENTS = '{"city": "Zürich \\"Nord\\"", "days": [1, 2.5e3, {"a": null}], "x": "</tool_call>[TOOL_CALLS]"}'

PARSERS = {
    "hermes": lambda: HermesParser(None),
    "llama3": lambda: LlamaParser(NAMES),
    "mistral": lambda: MistralParser(None),
    "list": lambda: MistralParser(NAMES, bare=True),
    "think": lambda: ReasoningParser(PlainParser()),
    "opened": lambda: ReasoningParser(PlainParser(), opened=True),
    "think+hermes": lambda: ReasoningParser(HermesParser(None), calls=CALL_BEGINS),
}


def joined(parts):
    """Join adjacent parts of one kind."""
    result = []
    for part in parts:
        if result and not isinstance(part, CallBegin | CallEnd) and type(part) is type(result[-1]):
            result[-1] = type(part)(result[-1].text + part.text)
        else:
            result.append(part)
    return [part for part in result if isinstance(part, CallBegin | CallEnd) or part.text]


def parse(kind, *pieces):
    parser = PARSERS[kind]()
    parts = []
    for piece in pieces:
        passed = parser.passes
        parts += (told := parser.push(piece))
        assert not passed or (parser.passes and told == [Content(piece)] * bool(piece))
    return joined([*parts, *parser.finish()])


def call(name, arguments):
    return [*cut(name, arguments), CallEnd()]


def cut(name, arguments):
    return [CallBegin(name), CallArguments(arguments)]


W, T = call("weather", ARGUMENTS), call("time", "{}")
HERMES_W = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
HERMES_T = '<tool_call>{"arguments":{},"name":"time"}</tool_call>'
LLAMA_W = f'{{"name": "weather", "parameters": {ARGUMENTS}}}'
BROKEN = '<tool_call>{"name": "weather", "arguments": {"city": <'
NO_CALLS = [
    f"Hm.\n<tool_call>{text}</tool_call>"
    for text in (
        "nothing", "{}", '{"name": 7}', '{"name": ""}', '{"name": ["time"]}', '{"name" "time"}',
        '{"name": "time", "x"}',
        '{"name": "\\quit"}', '{"\\quit": 7, "name": "time"}', '{{"name": "time"}}', '{7: 8, "name": "time"}',
    )
]  # fmt: skip

OUTPUTS = [
    ("hermes", "Just text, 1 < 2.", [Content("Just text, 1 < 2.")]),
    ("hermes", "With an end. \n", [Content("With an end. \n")]),
    ("hermes", HERMES_W, W),
    ("hermes", f"Let me see.\n\n{HERMES_W}\n{HERMES_T}", [Content("Let me see."), *W, *T]),
    ("hermes", f"{HERMES_T}\nDone.", [*T, Content("Done.")]),
    ("hermes", HERMES_W.removesuffix("</tool_call>"), W),
    ("hermes", HERMES_W.removesuffix("l_call>"), W),
    ("hermes", '<tool_call>{"name": "time"}}\n</tool_call>', T),  # a brace too many
    ("hermes", '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', call("time", '{"a": 1}')),
    ("hermes", '<tool_call>{"name": "time", "arguments": null, "id": 3}</tool_call>', T),
    ("hermes", '<tool_call>{"name": "other", "arguments": {"a": 1', cut("other", '{"a": 1')),
    ("hermes", BROKEN + "</tool_call>!", [*cut("weather", '{"city": '), Content("!")]),
    ("hermes", BROKEN + " more", cut("weather", '{"city": ')),
    ("hermes", '<tool_call>{"name": "time", "arguments": {}</tool_call>!', [*T, Content("!")]),  # one too few
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "time",}</tool_call>', call("time", '{"a": 1}')),
    (
        "hermes",
        '<tool_call>{"name": "time", "meta": {"b": 2}, "arguments": {"a": 1}}</tool_call>',
        call("time", '{"a": 1}'),
    ),
    ("hermes", '<tool_call>{"name": "time", "name": 7}</tool_call>', T),
    ("hermes", '<tool_call>{"name": "time"} and then?', [*T, Content("and then?")]),
    ("hermes", f'<tool_call>{{"name": "time"}}\n{HERMES_T}', [*T, *T]),
    *(("hermes", text, [Content(text)]) for text in NO_CALLS),
    ("hermes", '<tool_call>{"nam', [Content('<tool_call>{"nam')]),
    ("hermes", "a <tool_", [Content("a <tool_")]),
    ("hermes", HERMES_T + " and then?", [*T, Content("and then?")]),
    ("llama3", LLAMA_W, W),
    ("llama3", f"\n<|python_tag|>{LLAMA_W}", W),
    ("llama3", f'{LLAMA_W}; {{"name": "time", "arguments": {{}}}}', [*W, *T]),
    ("llama3", f"Let me see. <|python_tag|>{LLAMA_W}", [Content("Let me see."), *W]),
    ("llama3", '{"name": "Bob", "parameters": {}}', [Content('{"name": "Bob", "parameters": {}}')]),
    ("llama3", '{"answer": 3}', [Content('{"answer": 3}')]),
    ("llama3", f" Well: {LLAMA_W}", [Content(f" Well: {LLAMA_W}")]),
    ("llama3", '<|python_tag|>search.call(q="x")', [Content('<|python_tag|>search.call(q="x")')]),
    ("llama3", "<|python_tag|> x", [Content("<|python_tag|> x")]),
    ("llama3", " <|py", [Content(" <|py")]),
    ("llama3", ' <|python_tag|> {"name": "Bob"}', [Content(' <|python_tag|> {"name": "Bob"}')]),
    ("llama3", f"<|python_tag|>x <|python_tag|>{LLAMA_W}", [Content("<|python_tag|>x"), *W]),
    ("llama3", f'{LLAMA_W}; {{"name": "Bob"}}', [*W, Content('; {"name": "Bob"}')]),
    ("llama3", f"{LLAMA_W} ;\n", W),
    ("llama3", f"{LLAMA_W}; <|python_tag|>", [*W, Content("; <|python_tag|>")]),
    ("llama3", f"; {LLAMA_W}", [Content(f"; {LLAMA_W}")]),
    ("llama3", "  ", [Content("  ")]),
    ("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}]', W),
    (
        "mistral",
        f'Hm.\n[TOOL_CALLS][{{"name":"weather","arguments":{ARGUMENTS},"id":"abc"}} , {{"name": "time"}}]\n',
        [Content("Hm."), *W, *T],
    ),
    ("mistral", "[TOOL_CALLS] none", [Content("[TOOL_CALLS] none")]),
    ("mistral", "[TOOL_CALLS] [7]", [Content("[TOOL_CALLS] [7]")]),
    ("mistral", "an [array", [Content("an [array")]),
    ("mistral", '[TOOL_CALLS] [[{"name": "time"}]]', [Content('[TOOL_CALLS] [[{"name": "time"}]]')]),
    ("mistral", '[TOOL_CALLS] [{"name": "time", "arguments": {"a": <, x', [*cut("time", '{"a": '), Content("<, x")]),
    ("mistral", '[TOOL_CALLS] [{"name": "time"} {"name": "time"}]', [*T, Content('{"name": "time"}]')]),
    ("mistral", '[TOOL_CALLS] [{"name": "time"},', T),
    ("mistral", '[TOOL_CALLS] [{"name": "time"}] a [TOOL_CALLS]', [*T, Content("a [TOOL_CALLS]")]),
    ("list", f'[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "time", "arguments": {{}}}}]', [*W, *T]),
    ("list", '[{"name": "time", "arguments": {', cut("time", "{")),
    ("hermes", '<tool_call>{"name": "time", "arguments": {"a": 1}', call("time", '{"a": 1}')),
    ("think", "<think>\nHm, 1 < 2.\n\nSo…\n</think>\n\nYes.", [Reasoning("Hm, 1 < 2.\n\nSo…"), Content("Yes.")]),
    ("think", "\n<think></think>Yes.\n", [Content("Yes.\n")]),
    ("think", "No <think> here </think>", [Content("No <think> here </think>")]),
    ("think", " <thi", [Content(" <thi")]),
    ("think", "<think>\nnever done </th", [Reasoning("never done </th")]),
    ("opened", "\nHm.\n</think>\n\n<think> is text", [Reasoning("Hm."), Content("<think> is text")]),
    (
        "think+hermes",
        f"<think>{HERMES_T}?</think>\n{HERMES_W}",
        [Reasoning(f"{HERMES_T}?"), *W],
    ),
    ("think+hermes", f"<think>Hm.\n{HERMES_W}\n{HERMES_T}", [Reasoning("Hm."), *W, *T]),
    ("think+hermes", f"<think>Hm.\n\n{HERMES_W}\nNo.</think>", [Reasoning(f"Hm.\n\n{HERMES_W}\nNo.")]),
    ("think+hermes", "<think><tool_call> is a tag", [Reasoning("<tool_call> is a tag")]),
    ("think+hermes", "<think>Hm.<tool_call>{</thi", [Reasoning("Hm."), Content("<tool_call>{</thi")]),
]


@pytest.mark.parametrize(("kind", "text", "expected"), OUTPUTS, ids=range(len(OUTPUTS)))
def test_outputs_and_their_parts(kind, text, expected):
    assert parse(kind, text) == expected


@pytest.mark.parametrize(("kind", "text", "expected"), OUTPUTS, ids=range(len(OUTPUTS)))
def test_in_every_split_in_three_and_character_by_character(kind, text, expected):
    assert parse(kind, *text) == expected
    for first in range(len(text)):
        for second in range(first, min(first + 14, len(text))):
            assert parse(kind, text[:first], text[first:second], text[second:]) == expected


@pytest.mark.parametrize(
    "text", ['{"answer": 3}', "{{ x", '{"name": "Bob"', "{7", '{"name" "time"', "{} x", "[1]", "a {"]
)
def test_text_is_content_as_soon_as_it_cannot_become_a_call(text):
    assert joined(PARSERS["llama3"]().push(text)) == [Content(text)]


def test_only_text_that_may_become_a_marker_is_held_back():
    assert joined(PARSERS["hermes"]().push("1 < 2 <b>, <to")) == [Content("1 < 2 <b>,")]


def test_a_hermes_call_does_not_end_reasoning_with_another_tool_parser():
    options = {"forced": False, "parallel": True, "reasons": True, "opened": True, "free": True}
    parser = OutputStyle(calls="llama3", thinks=True).parser(NAMES, **options)
    assert joined([*parser.push(f"Hm.{HERMES_T}"), *parser.finish()]) == [Reasoning(f"Hm.{HERMES_T}")]


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", '{"name":"time"',
    ',"arguments":', '"parameters":', "{", "}", "[", "]", '"', "\\", ",", ":", ";", " ", "\n", "a", "1", "<", "null",
    '{"a":"b"}', '"x\\""',
]  # fmt: skip


@given(kind=st.sampled_from(sorted(PARSERS)), pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=14), data=st.data())
@example(kind="llama3", pieces=["<|python_tag|>", " ", "a"], data=None)
def test_any_output_in_any_split_gives_the_same(kind, pieces, data):
    text = "".join(pieces)
    whole = parse(kind, text)
    assert parse(kind, *text) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        edges = [0, *cuts, len(text)]
        assert parse(kind, *(text[a:b] for a, b in itertools.pairwise(edges))) == whole


@settings(max_examples=30)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_arguments_come_out_as_they_were_written(value):
    arguments = json.dumps({"value": value}, ensure_ascii=False)
    output = json.dumps({"name": "time", "arguments": "?"}).replace('"?"', arguments)
    for kind, text in (("hermes", f"<tool_call>{output}</tool_call>"), ("llama3", output), ("list", f"[{output}]")):
        assert parse(kind, text) == call("time", arguments)


def test_a_parser_passes_text_through_once_nothing_can_follow():
    assert PlainParser().passes
    parser, passed = PARSERS["think"](), []
    for piece in ("<think>a", "</think>", "\n", "b", "c"):
        parser.push(piece)
        passed.append(parser.passes)
    assert passed == [False, False, False, True, True]
    for kind in ("hermes", "llama3", "mistral", "think+hermes"):
        parser = PARSERS[kind]()
        parser.push("text")
        assert not parser.passes
