"""Grammars as clients send them are compiled or refused, in bounded time, and cached."""

import asyncio
import json
import time

import pytest

from baton.errors import InvalidRequest, Overloaded
from baton.request import Grammar, GrammarKind
from engine import random_checkpoint
from engine.grammar.check import GrammarCheck
from engine.grammar.grammars import Grammars
from engine.grammar.jail import Verdict

VOCAB, EOS = 512, 2
DEPTH = 4000


@pytest.fixture(scope="module")
def grammars(tiny_model):
    grammars = Grammars(tiny_model, VOCAB, [EOS])
    yield grammars
    grammars.close()


@pytest.fixture
def compiled(grammars, make_generation):
    def compile_one(kind, text, **options):
        return asyncio.run(
            grammars.compile(make_generation([5], grammar=Grammar(kind, text, "response_format"), **options))
        )

    return compile_one


def accepts(grammars, state, text):
    """Whether the grammar accepts the whole text, and allows it to end there."""
    matcher = state.matcher.deep_copy()
    tokens = grammars.tokens.tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA), ['{"a": 1}', '{\n  "a":-20\n}'], ['{"a": "1"}', "{}", '{"a":1']),
        (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA), ["{" + 32 * " " + '"a":1}'], ["{" + 33 * " " + '"a":1}']),
        (GrammarKind.JSON_SCHEMA, '{"properties": {"a": {"type": "null"}}}', ['{"a":null}'], ['{"a":null,"b":1}']),
        (GrammarKind.JSON_SCHEMA, '{"type": "object"}', ['{"b": [null, {"ä": "😀"}]}'], ["[]", '"a"']),
        (GrammarKind.REGEX, r"[a-z]{2,4}/\d+", ["ab/1", "abcd/20"], ["a/1", "ab1"]),
        (GrammarKind.CHOICE, json.dumps(["yes", 'n"o\\', "日本\n"]), ["yes", 'n"o\\', "日本\n"], ["no", "y"]),
        (GrammarKind.CFG, 'start: "a" b+\nb: "b" | "c"', ["abc", "ab"], ["a", "ba"]),
        (GrammarKind.CFG, '// x\n?start: "a" b+\n!b: "b" | "c"', ["abc", "ab"], ["a", "ba"]),
        (GrammarKind.CFG, 'root ::= "a" ("b" | "c")+', ["abc", "ab"], ["a", "ba"]),
    ],
)
def test_each_kind_of_grammar_accepts_its_language(grammars, compiled, kind, text, good, bad):
    state = compiled(kind, text)
    assert [accepts(grammars, state, example) for example in good + bad] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (GrammarKind.REGEX, "(a", "unclosed group"),
        (GrammarKind.REGEX, "(?=a)b", "look-around"),
        (GrammarKind.JSON_SCHEMA, '{"type": ', "not valid JSON"),
        (GrammarKind.JSON_SCHEMA, "[1]", "must be an object"),
        (GrammarKind.JSON_SCHEMA, '{"not": {}}', '["not"]'),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "#"}', "refused"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "http://example.com/schema"}', "does not fetch"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "file:///etc/passwd"}', "refused"),
        (GrammarKind.CFG, '{"grammars": [{"lark_grammar": "start: \\"a\\""}]}', "neither Lark nor GBNF"),
        (GrammarKind.CFG, 'root ::= "a', "neither Lark nor GBNF"),
        (GrammarKind.CHOICE, '"yes"', "list of strings"),
    ],
)
def test_invalid_grammars_are_refused_with_a_reason(compiled, kind, text, reason):
    with pytest.raises(InvalidRequest) as caught:
        compiled(kind, text)
    assert reason in caught.value.message
    assert len(caught.value.message) <= 200
    assert caught.value.param == "response_format"


def _objects(num):
    return [{"type": "object", "properties": {f"{i}_{j}": {"type": "string"} for j in range(20)}} for i in range(num)]


HOSTILE = {
    "overruns the stack": (GrammarKind.CFG, "start: a0\n" + "".join(f'a{i}: a{i + 1} "x"?\n' for i in range(3000))),
    "overruns the stack in a terminal": (
        GrammarKind.CFG,
        "start: A0\n" + "".join(f'A{i}: "x" A{i + 1}\n' for i in range(3000)),
    ),
    "takes minutes and gigabytes": (GrammarKind.REGEX, "a?" * 30_000),
    "takes minutes": (
        GrammarKind.JSON_SCHEMA,
        json.dumps({"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]}),
    ),
    "doubles in each line": (
        GrammarKind.CFG,
        "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(60)) + 'A60: "a"',
    ),
    "thousands of nullables": (GrammarKind.CFG, "start: " + "a? " * 20_000 + '\na: "x"'),
    "nested groups": (GrammarKind.REGEX, "(" * DEPTH + "a" + "){1,2}" * DEPTH),
    "nested arrays": (GrammarKind.JSON_SCHEMA, '{"items":' * DEPTH + "{}" + "}" * DEPTH),
    "long chain of references": (
        GrammarKind.JSON_SCHEMA,
        json.dumps({"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(1500)}}),
    ),
    "wide alternatives": (GrammarKind.JSON_SCHEMA, json.dumps({"anyOf": _objects(90)})),
    "too long": (GrammarKind.REGEX, "a" * 65_537),
}


@pytest.mark.parametrize(("kind", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_grammars_are_refused_in_bounded_time_and_block_no_others(grammars, make_generation, kind, text):
    async def attempt():
        gaps, last = [], time.perf_counter()
        refusal = asyncio.ensure_future(grammars.compile(make_generation([5], grammar=Grammar(kind, text, "x"))))
        while not refusal.done():
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - last)
            last += gaps[-1]
        with pytest.raises(InvalidRequest):
            await refusal

    start_s = time.perf_counter()
    asyncio.run(attempt())
    assert time.perf_counter() - start_s < 30  # minutes where limits fail; 0.5 s on a quiet machine


def test_others_compile_after_a_hostile_one(compiled):
    with pytest.raises(InvalidRequest):
        compiled(*HOSTILE["overruns the stack"])
    assert compiled(GrammarKind.REGEX, "after[0-9]") is not None


def test_concurrent_requests_share_one_compilation(tiny_model, make_generation, monkeypatch):
    grammars, asked = Grammars(tiny_model, VOCAB, [EOS]), []
    run = GrammarCheck.run
    monkeypatch.setattr(GrammarCheck, "run", lambda check, grammar: asked.append(grammar) or run(check, grammar))
    generations = [
        make_generation([5], key=i, grammar=Grammar(GrammarKind.REGEX, "(" if i % 2 else "a", "p")) for i in range(8)
    ]

    async def attempt():
        return await asyncio.gather(*map(grammars.compile, generations), return_exceptions=True)

    outcomes = asyncio.run(attempt()) + asyncio.run(attempt())
    assert len(asked) == 2
    assert [isinstance(outcome, InvalidRequest) for outcome in outcomes] == [False, True] * 8
    assert len({id(state.matcher) for state in outcomes[::2]}) == 8  # each request has its own
    grammars.close()


def test_a_process_that_died_is_replaced(tiny_model, make_generation):
    grammars = Grammars(tiny_model, VOCAB, [EOS])

    def compile_one(text):
        return asyncio.run(grammars.compile(make_generation([5], grammar=Grammar(GrammarKind.REGEX, text, "p"))))

    assert compile_one("a")
    for check in grammars._checks:
        if check._process is not None:
            check._process.kill()
            check._process.wait()
    assert compile_one("b")
    grammars.close()


def test_no_grammar_waits_for_a_process_to_start_once_they_are_warm(tiny_model):
    grammars = Grammars(tiny_model, VOCAB, [EOS])
    try:
        grammars.warm()
        warm = [check._process for check in grammars._checks]
        assert all(check._timeout_s < 5 for check in grammars._checks)  # of processes that have answered
        both = [Grammar(GrammarKind.REGEX, text, "p") for text in "ab"]
        assert not any(isinstance(found, str) for found in grammars._lanes.map(grammars._compile_in_lane, both))
        assert [check._process for check in grammars._checks] == warm
    finally:
        grammars.close()


def test_a_grammar_that_timed_out_for_lack_of_cpu_is_not_called_too_complex(grammars, make_generation, monkeypatch):
    generation = make_generation([5], grammar=Grammar(GrammarKind.REGEX, "starved", "p"))
    with monkeypatch.context() as patch:
        patch.setattr(GrammarCheck, "run", lambda self, grammar: Verdict(error="too complex", is_final=False))
        with pytest.raises(Overloaded):
            asyncio.run(grammars.compile(generation))
    assert asyncio.run(grammars.compile(generation))


def test_too_many_grammars_at_once_are_refused_as_overload(grammars, make_generation):
    async def attempt():
        texts = [f"overload{i}" for i in range(40)]
        tasks = [
            grammars.compile(make_generation([5], grammar=Grammar(GrammarKind.REGEX, text, "p"))) for text in texts
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(attempt())
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(refused) == 8
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception) and outcome not in refused]


def test_a_generation_without_a_grammar_is_not_compiled(grammars, make_generation):
    assert asyncio.run(grammars.compile(make_generation([5]))) is None


@pytest.mark.parametrize("eos", [[EOS], []])
def test_a_model_without_eos_or_tokenizer_refuses_only_grammars(tmp_path, make_generation, eos):
    model = random_checkpoint.write(tmp_path)
    if eos:
        spec = json.loads((model / "tokenizer.json").read_text())
        spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        (model / "tokenizer.json").write_text(json.dumps(spec))
    grammars = Grammars(model, VOCAB, eos)
    assert asyncio.run(grammars.compile(make_generation([5]))) is None
    with pytest.raises(InvalidRequest, match="does not support structured output"):
        asyncio.run(grammars.compile(make_generation([5], grammar=Grammar(GrammarKind.REGEX, "a", "guided_regex"))))
