import random

import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from baton.request import Grammar, GrammarKind
from engine.grammar.state import GrammarState
from engine.sampling.logit_adjust import adjust, adjusts_logits
from engine.sampling.token_counts import TokenCounts


def plain(logits, request, eos):
    """The formula of the module's docstring, one token after another."""
    sampling, result = request.sampling, list(logits)
    output = request.token_ids[request.num_prompt_tokens :]
    for token, bias in sampling.logit_bias.items():
        result[token] += bias
    for token in set(request.token_ids):
        value = result[token]
        value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        count = output.count(token)
        result[token] = value - sampling.frequency_penalty * count - sampling.presence_penalty * (count > 0)
    if len(output) < sampling.min_tokens:
        for token in {*eos, *sampling.stop_token_ids}:
            result[token] = float("-inf")
    return result


PARAMS = [
    {"repetition_penalty": 1.7},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.8},
    {"repetition_penalty": 0.9, "frequency_penalty": -0.1, "presence_penalty": 1.0, "logit_bias": {3: -2.0, 0: 7.5}},
    {"logit_bias": {19: -100.0}},
    {"min_tokens": 9, "stop_token_ids": (4, 6), "max_tokens": 50},
    {"min_tokens": 3, "stop_token_ids": (4, 6), "max_tokens": 50},
]


def test_equals_the_plain_formula_while_requests_grow(make_request):
    rng = random.Random(1)
    requests = [
        make_request([rng.randrange(20) for _ in range(10)], num_prompt_tokens=rng.randrange(4, 9), **params)
        for params in PARAMS
    ]
    for step in range(5):
        logits = torch.randn(len(requests), 20, generator=torch.Generator().manual_seed(step))
        wanted = [plain(row, request, (2,)) for row, request in zip(logits.tolist(), requests, strict=True)]
        adjust(logits, requests, (2,))
        assert torch.allclose(logits, torch.tensor(wanted), atol=1e-5)
        for request in requests:
            request.token_ids.append(rng.randrange(20))


def test_nothing_to_adjust(make_request):
    assert not adjusts_logits(make_request([1]).sampling)
    assert all(adjusts_logits(make_request([1], **params).sampling) for params in PARAMS)


@pytest.mark.parametrize("num_outputs", [0, 1, 300])
def test_token_counts(num_outputs):
    rng = random.Random(num_outputs)
    prompt = [rng.randrange(50) for _ in range(20)]
    outputs = [rng.randrange(500) for _ in range(num_outputs)]
    counts = TokenCounts(prompt)
    for end in range(0, num_outputs + 1, 7):
        counts.catch_up(prompt + outputs[:end], len(prompt))
    counts.catch_up(prompt + outputs, len(prompt))
    found = dict(zip(counts.token_ids.tolist(), counts.output_counts.tolist(), strict=True))
    assert found == {token: outputs.count(token) for token in {*prompt, *outputs}}


def test_a_grammar_decides_when_to_stop(make_request):
    grammar = Grammar(GrammarKind.REGEX, "a*", "guided_regex")
    request = make_request([1], min_tokens=3, grammar=grammar)
    request.grammar = GrammarState(LLMatcher(LLTokenizer("byte"), "start: /a*/"), grammar, ())
    assert adjusts_logits(make_request([1], grammar=grammar).sampling)
    logits = torch.zeros(1, 20)
    adjust(logits, [request], (2,))
    assert not logits.any()
