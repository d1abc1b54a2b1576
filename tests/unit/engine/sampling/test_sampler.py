import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rows import Rows
from engine.sampling.sampler import NUM_CANDIDATES, Sampler, cutoff, to_host
from kernels.api import Filters, Logits, SamplingKernels
from kernels.dispatch import sampling_kernels
from kernels.reference.ends import masked

VOCAB = 600  # more than NUM_CANDIDATES, so both ways to the cutoff are taken


@pytest.fixture(params=["torch", "compiled"])
def kernels(request):
    return SamplingKernels(masked) if request.param == "torch" else sampling_kernels(torch.device("cpu"))


@pytest.fixture
def sample(make_request, kernels):
    """Tokens and log-probabilities for rows of logits, each with its own sampling parameters."""

    def run(logits, params, positions=None, eos=(2,)):
        rows = Rows(len(params), 8)
        requests = []
        for index, sampling in enumerate(params):
            length = 5 if positions is None else positions[index]
            requests.append(make_request([1] * length, key=index, **({"temperature": 1.0} | sampling)))
            rows.take(requests[-1])
        row = np.array([request.row for request in requests], np.int64)
        sampler = Sampler(rows, logits.shape[1], eos, torch.device("cpu"), kernels)
        values = logits.float()
        likeliest = values.argmax(-1) if kernels.draw_filtered else None
        tokens, found = sampler.sample(Logits(values, values.sum(-1).isfinite(), likeliest), requests, row)
        logprobs = iter(found)
        wants = [sampling.get("num_logprobs", -1) >= 0 for sampling in params]
        return tokens.tolist(), [to_host(next(logprobs)) if wanted else None for wanted in wants]

    return run


def random_logits(num_rows, seed=0, scale=3.0):
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


PARAMS = [
    {"temperature": 0.0},
    {"temperature": 1e-9, "top_p": 0.5},
    {"seed": 1},
    {"seed": 2, "temperature": 0.3},
    {"seed": 3, "top_k": 5},
    {"seed": 4, "top_k": 400, "top_p": 0.99},
    {"seed": 5, "top_p": 0.3},
    {"seed": 6, "top_p": 0.999, "temperature": 2.0},
    {"seed": 7, "min_p": 0.1},
    {"seed": 8, "min_p": 1e-7},
    {"seed": 9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 0.7},
    {"seed": 10, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"seed": 11, "logit_bias": {17: 4.0}, "min_tokens": 3, "num_logprobs": 3},
    {"temperature": 0.0, "logit_bias": {99: 100.0}, "num_logprobs": 0},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch(sample, dtype):
    logits = random_logits(len(PARAMS)).to(dtype)
    together, logprobs = sample(logits, PARAMS)
    assert (together, logprobs) == sample(logits, PARAMS)
    for index, params in enumerate(PARAMS):
        alone, [logprob] = sample(logits[index : index + 1], [params])
        assert alone == [together[index]], params
        assert logprob == logprobs[index]


def test_logits_are_left_as_they_were(sample):
    logits = random_logits(len(PARAMS))
    before = logits.clone()
    sample(logits, PARAMS)
    assert torch.equal(logits, before)


def test_greedy_takes_the_likeliest(sample):
    logits = random_logits(3)
    assert (
        sample(logits, [{"temperature": 0.0, "top_k": 3, "seed": seed} for seed in range(3)])[0]
        == logits.argmax(-1).tolist()
    )


def test_position_and_seed_change_the_draw(sample):
    logits = random_logits(1, scale=1.0).expand(50, VOCAB)
    by_position, _ = sample(logits, [{"seed": 4}] * 50, positions=range(1, 51))
    by_seed, _ = sample(logits, [{"seed": seed} for seed in range(50)])
    assert len(set(by_position)) > 5
    assert len(set(by_seed)) > 5


def kept_tokens(logits, top_k, top_p, min_p):
    """The cutoff by its definition, one token after another, which the vectorised one must equal."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    weights = [2.718281828459045 ** (logits[token] - logits[order[0]]) for token in order]
    total, before, kept = sum(weights), 0.0, set()
    for token, weight in zip(order, weights, strict=True):
        if before / total < top_p and weight >= min_p:
            kept.add(token)
        before += weight
    return kept


EDGE = 1e-5  # of a probability: tokens right at top_p may fall either way in fp32


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 50, NUM_CANDIDATES, NUM_CANDIDATES + 1, VOCAB - 1, VOCAB, 10**6]),
    top_p=st.sampled_from([0.0001, 0.1, 0.5, 0.9, 0.9999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-6, 0.01, 0.5, 1.0]),
)
def test_cutoff_equals_the_definition(seed, scale, top_k, top_p, min_p):
    logits = random_logits(1, seed, scale)
    filters = Filters(torch.tensor([min(top_k or VOCAB, VOCAB)]), torch.tensor([top_p]), torch.tensor([min_p]))
    exact = logits[0].double().tolist()
    at_least, at_most = (kept_tokens(exact, top_k, top_p + edge, min_p) for edge in (-EDGE, EDGE))
    values = logits.sort(descending=True).values
    lowest, enough = cutoff(values, logits.logsumexp(-1), filters, VOCAB)
    assert enough.item()
    kept = set((logits[0] >= lowest).nonzero().flatten().tolist())
    assert at_least <= kept <= at_most
    lowest_of_candidates, enough = cutoff(values[:, :NUM_CANDIDATES], logits.logsumexp(-1), filters, VOCAB)
    if enough.item() and lowest_of_candidates > values[0, NUM_CANDIDATES - 1]:
        kept = set((logits[0] >= lowest_of_candidates).nonzero().flatten().tolist())
        assert at_least <= kept <= at_most
    else:
        assert len(at_most) >= NUM_CANDIDATES or 0 < top_k > NUM_CANDIDATES


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.3}, {"top_k": 300, "top_p": 0.97}])
def test_draws_stay_within_the_filter_and_reach_all_of_it(sample, params):
    logits = random_logits(1, scale=1.5)
    kept = kept_tokens(logits[0].tolist(), params.get("top_k", 0), params.get("top_p", 1.0), params.get("min_p", 0.0))
    draws, _ = sample(logits.expand(400, VOCAB), [params | {"seed": seed} for seed in range(400)])
    assert set(draws) <= kept
    assert len(set(draws)) > min(len(kept), 400) * 0.4


@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 100}])
def test_equal_logits_beyond_the_candidates(sample, params):
    """It is arbitrary which of the equal logits are candidates, so none may be excluded."""
    logits = torch.zeros(1, VOCAB)
    draws, _ = sample(logits.expand(1000, VOCAB), [params | {"seed": seed} for seed in range(1000)])
    assert len(set(draws)) > NUM_CANDIDATES


def test_logprobs_are_of_the_models_own_distribution(sample):
    logits = random_logits(2)
    params = [{"temperature": 0.0, "num_logprobs": 4, "logit_bias": {5: 100.0}}, {"num_logprobs": 0, "seed": 3}]
    [first, second], [logprobs, alone] = sample(logits, params)
    wanted = logits.log_softmax(-1)
    assert first == 5
    assert logprobs.logprob == pytest.approx(wanted[0, 5].item(), abs=1e-5)
    assert logprobs.top_token_ids == wanted[0].topk(4).indices.tolist()
    assert logprobs.top_logprobs == pytest.approx(wanted[0].topk(4).values.tolist(), abs=1e-5)
    assert alone.logprob == pytest.approx(wanted[1, second].item(), abs=1e-5)
    assert (alone.top_token_ids, alone.top_logprobs) == ([], [])


def test_rows_of_nan_do_not_affect_other_rows(sample):
    logits = random_logits(len(PARAMS))
    wanted, _ = sample(logits, PARAMS)
    params = [*PARAMS, *({"seed": 1} | sampling for sampling in PARAMS)]
    tokens, _ = sample(torch.cat((logits, torch.full_like(logits, float("nan")))), params)
    assert tokens[: len(PARAMS)] == wanted
    assert all(0 <= token < VOCAB for token in tokens)
