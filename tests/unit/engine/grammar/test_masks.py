"""Output follows its grammar: in mixed batches, with all other parameters, and wherever a request resumes."""

import asyncio
import json
import re

import pytest
import torch

from baton.errors import InvalidRequest
from baton.request import FinishReason, Grammar, GrammarKind
from baton.text.tokenizer import Tokenizer
from engine.grammar import masks
from engine.grammar.grammars import Grammars
from engine.outputs import NO_TOKEN
from kernels.reference.ends import masked

EOS = 2
PROMPT = list(range(30, 50))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["baton", "relay"]},
        "ok": {"type": "boolean"},
        "ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "ok", "ids"],
    "additionalProperties": False,
}
CHOICES = ["relay", "relays", "hand over", "日本"]
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA), "response_format")
REGEX = Grammar(GrammarKind.REGEX, r"[a-c]{3,9}-[0-9]{2}", "guided_regex")
CHOICE = Grammar(GrammarKind.CHOICE, json.dumps(CHOICES), "guided_choice")
CFG = Grammar(GrammarKind.CFG, 'start: NUM ("+" NUM){1,4}\nNUM: /[1-9][0-9]{0,3}/', "guided_grammar")
# It compiles, but after its first token there are more continuations than can be followed.
EXPLODING = Grammar(
    GrammarKind.CFG, "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(60)) + 'a60: "a"', "g"
)
SAMPLED = {"temperature": 1.0, "max_tokens": 300}


@pytest.fixture
def engine(make_engine):
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def add(engine, make_generation):
    """Compile the grammar, as a node does, and queue the request."""

    def add_one(grammar, token_ids=PROMPT, prefill_only=False, **options):
        generation = make_generation(token_ids, grammar=grammar, **(SAMPLED | options))
        return engine.add(generation, prefill_only=prefill_only, grammar=asyncio.run(engine.compile(generation)))

    return add_one


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return Tokenizer.load(tiny_model)


def output(request):
    return request.token_ids[request.num_prompt_tokens :]


def check_text(tokenizer, request):
    assert (request.finish_reason, request.error) == (FinishReason.STOP, None)
    assert output(request)[-1] == EOS
    text = tokenizer.decode(output(request)[:-1])
    if request.sampling.grammar is JSON:
        value = json.loads(text)
        assert list(value) == list(SCHEMA["properties"])
        assert len(value["name"]) <= 6
        assert value["kind"] in ("baton", "relay")
        assert all(0 <= i <= 99 for i in value["ids"])
        assert len(value["ids"]) <= 3
    elif request.sampling.grammar is REGEX:
        assert re.fullmatch(REGEX.text, text)
    elif request.sampling.grammar is CHOICE:
        assert text in CHOICES
    else:
        assert re.fullmatch(r"[1-9][0-9]{0,3}(\+[1-9][0-9]{0,3}){1,4}", text)


@pytest.mark.parametrize("top", [{}, {"top_p": 0.5, "top_k": 20, "min_p": 0.05}, {"temperature": 0.0}])
def test_any_mix_of_grammars_in_one_batch(engine, add, run, tokenizer, top):
    options = top | {"repetition_penalty": 1.3, "frequency_penalty": 0.2}  # else greedy whitespace has no end
    kinds = [JSON, None, REGEX, CHOICE, CFG, None, JSON, CHOICE]
    most = [400 if grammar else 60 for grammar in kinds]  # those with a grammar end by themselves
    requests = [add(grammar, key=i, seed=i, **(options | {"max_tokens": most[i]})) for i, grammar in enumerate(kinds)]
    run(engine)
    for request in requests:
        if request.sampling.grammar is not None:
            check_text(tokenizer, request)
    alone = add(None, seed=1, **(options | {"max_tokens": most[1]}))
    run(engine)
    assert output(alone) == output(requests[1])


@pytest.mark.parametrize("grammar", [JSON, REGEX, CFG])
def test_a_request_resumes_from_any_token_as_if_never_interrupted(engine, add, run, grammar):
    whole = add(grammar, seed=5)
    run(engine)
    tokens = output(whole)
    for done in {1, len(tokens) // 2, len(tokens) - 1}:
        resumed = add(grammar, PROMPT + tokens[:done], num_prompt_tokens=len(PROMPT), seed=5)
        run(engine)
        assert output(resumed) == tokens
        assert resumed.finish_reason is FinishReason.STOP
    first = add(grammar, seed=5, prefill_only=True)  # token 0 on a prefill node
    run(engine)
    assert output(first) == tokens[:1]
    engine.release(first)


def test_preemption_changes_nothing(engine, add, run):
    undisturbed = add(REGEX, seed=3)
    run(engine)
    request = add(REGEX, seed=3)
    while request.num_output_tokens < 5:
        engine.step()
    engine._scheduler._preempt(request)
    run(engine)
    assert (output(request), request.num_preemptions) == (output(undisturbed), 1)


def test_logprobs_are_the_models_own(engine, add, run):
    requests = [add(grammar, num_logprobs=5, temperature=0.0, max_tokens=3) for grammar in (None, CHOICE)]
    outputs = run(engine)
    free, constrained = (next(o.logprobs for o in outputs if o.request is request) for request in requests)
    assert free.top_token_ids == constrained.top_token_ids
    assert torch.allclose(torch.tensor(free.top_logprobs), torch.tensor(constrained.top_logprobs), atol=1e-5)
    assert constrained.logprob < constrained.top_logprobs[0]


def test_neither_bias_nor_min_tokens_break_a_grammar(engine, add, run, tokenizer):
    bias = {EOS: 100.0, tokenizer.encode("z")[0]: 100.0, tokenizer.encode("r")[0]: -100.0}
    requests = [add(grammar, logit_bias=bias, seed=i) for i, grammar in enumerate((JSON, REGEX, CHOICE, CFG))]
    late = add(REGEX, min_tokens=13, logit_bias={EOS: 50.0})  # possible: nine letters, a dash, two digits are twelve
    run(engine)
    for request in [*requests, late]:
        check_text(tokenizer, request)
    assert len(tokenizer.decode(output(late))) == 12  # it could end before, and had to at the last


def test_min_tokens_within_reach_are_kept(engine, add, run):
    request = add(Grammar(GrammarKind.REGEX, "[a-z]*", "r"), min_tokens=10, logit_bias={EOS: 100.0})
    run(engine)
    assert (request.num_output_tokens, request.finish_reason) == (11, FinishReason.STOP)
    assert output(request).index(EOS) == 10


def test_stop_tokens_end_a_text_only_where_it_may_end(engine, add, run, tokenizer):
    stop = tokenizer.encode("!")[0]
    request = add(REGEX, stop_token_ids=(EOS, stop), logit_bias={stop: 100.0})
    run(engine)
    assert (output(request)[-1], request.finish_reason) == (stop, FinishReason.STOP)
    assert re.fullmatch(REGEX.text, tokenizer.decode(output(request)[:-1]))


def test_a_grammar_that_explodes_ends_its_own_request_only(engine, add, run, tokenizer):
    bystander, exploding, another = add(REGEX, seed=1), add(EXPLODING, seed=2), add(None, seed=3, max_tokens=50)
    outputs = run(engine)
    assert exploding.finish_reason is FinishReason.ERROR
    assert isinstance(exploding.error, InvalidRequest)
    assert exploding.error.param == "g"
    last = [o for o in outputs if o.request is exploding][-1]
    assert (last.token_id, last.error) == (NO_TOKEN, exploding.error)
    check_text(tokenizer, bystander)
    assert another.finish_reason is not FinishReason.ERROR
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_a_request_with_slow_masks_again_and_again_is_ended(engine, add, run, monkeypatch):
    monkeypatch.setattr(masks, "_WATCH_S", -1.0)  # as if every mask took long
    requests = [add(JSON, seed=1), add(REGEX, seed=2)]
    requests[0].grammar.slow_s = 100.0
    run(engine)
    assert [request.finish_reason for request in requests] == [FinishReason.ERROR, FinishReason.STOP]
    assert "too much time" in requests[0].error.message


def test_masks_computed_one_by_one_are_the_same(engine, add, run, monkeypatch):
    at_once = [add(grammar, seed=9) for grammar in (JSON, REGEX)]
    run(engine)
    monkeypatch.setattr(masks, "_WATCH_S", -1.0)
    monkeypatch.setattr(masks, "_SLOW_S", -1.0)
    watched = [add(grammar, seed=9) for grammar in (JSON, REGEX)]
    run(engine)
    assert [output(request) for request in watched] == [output(request) for request in at_once]
    assert all(request.grammar.slow_s > 0 for request in watched)


def test_token_ids_without_a_text_are_never_drawn(tiny_model, make_request):
    grammars = Grammars(tiny_model, 600, [EOS])  # a model padded beyond its tokenizer's 512
    request = make_request(PROMPT, grammar=Grammar(GrammarKind.CFG, "start: <[*]>", "p"))
    request.grammar = asyncio.run(grammars.compile(request.generation))
    logits = torch.zeros(2, 600)
    grammars.masks(torch.device("cpu"), 1, masked).apply(logits, [make_request(PROMPT), request])
    assert logits[0].isfinite().all()
    assert logits[1, 3:512].isfinite().all()
    assert logits[1, 512:].isneginf().all()
    grammars.close()


def test_a_grammar_must_have_been_compiled(engine, make_generation):
    with pytest.raises(ValueError, match="compiled"):
        engine.add(make_generation(PROMPT, grammar=REGEX))
