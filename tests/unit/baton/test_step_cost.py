import random

import pytest

from baton.step_cost import LinearFit, StepCost, StepFit, StepShape

TRUE = StepCost(
    prefill_base_ms=6.0,
    prefill_token_ms=0.08,
    prefill_context_ms=1e-6,
    decode_base_ms=8.0,
    decode_request_ms=0.05,
    decode_token_ms=2e-5,
)


def prompt_step(rng: random.Random) -> StepShape:
    tokens, before = rng.randint(50, 2048), rng.choice([0, 0, 2048, 8192, 32768])
    return StepShape(tokens, tokens * (before + tokens / 2), rng.randint(0, 32), rng.randint(0, 200_000))


def decode_step(rng: random.Random) -> StepShape:
    requests = rng.randint(1, 64)
    return StepShape(0, 0.0, requests, requests * rng.randint(100, 4000))


def true_ms(shape: StepShape) -> float:
    decode = TRUE.decode_request_ms * shape.num_decoding + TRUE.decode_token_ms * shape.decode_context
    if not shape.num_prompt_tokens:
        return TRUE.decode_base_ms + decode
    prompt = TRUE.prefill_token_ms * shape.num_prompt_tokens + TRUE.prefill_context_ms * shape.prompt_context
    return TRUE.prefill_base_ms + prompt + decode


def fitted(fit: StepFit) -> StepCost:
    proto = fit.proto()
    return StepCost(**{name: getattr(proto, name) for name in StepCost.__struct_fields__})


def learn(fit: StepFit, rng: random.Random, num_steps: int, slower: float = 1.0) -> None:
    for _ in range(num_steps):
        for shape in (decode_step(rng), prompt_step(rng)):
            duration = slower * true_ms(shape) * rng.lognormvariate(0, 0.05)
            fit.note(shape, duration * (20 if rng.random() < 0.01 else 1))


@pytest.mark.parametrize("seed", range(4))
def test_fitted_costs_predict_steps(seed: int) -> None:
    rng, fit = random.Random(seed), StepFit()
    learn(fit, rng, 600)
    cost = fitted(fit)
    for num_tokens, num_cached in ((100, 0), (2048, 0), (2048, 30_000), (16_384, 0), (16_384, 16_384)):
        expected = TRUE.prefill_ms(num_tokens, num_cached, 2048)
        assert cost.prefill_ms(num_tokens, num_cached, 2048) == pytest.approx(expected, rel=0.25, abs=3)
    for num_requests, context in ((1, 1000), (16, 32_000), (64, 128_000)):
        expected = TRUE.decode_step_ms(num_requests, context)
        assert cost.decode_step_ms(num_requests, context) == pytest.approx(expected, rel=0.15)


def test_the_fit_follows_a_node_that_gets_slower() -> None:
    rng, fit = random.Random(5), StepFit()
    learn(fit, rng, 400)
    learn(fit, rng, 1500, slower=2.0)
    assert fitted(fit).prefill_ms(2048, 0, 2048) == pytest.approx(2 * TRUE.prefill_ms(2048, 0, 2048), rel=0.25)


@pytest.mark.parametrize("num_tokens", [16, 64, 400])
def test_prompts_of_one_length_predict_others_within_a_factor_of_two(num_tokens: int) -> None:
    """Base and tokens cannot be told apart then; all put down to the base would make long prompts cost nothing."""
    fit = StepFit()
    for _ in range(60):
        fit.note(StepShape(num_tokens, num_tokens**2 / 2, 0, 0), TRUE.prefill_ms(num_tokens, 0, 2048))
    assert fitted(fit).prefill_ms(num_tokens, 0, 2048) == pytest.approx(TRUE.prefill_ms(num_tokens, 0, 2048), rel=0.01)
    for other in (256, 1536, 6000):
        assert 0.5 < fitted(fit).prefill_ms(other, 0, 2048) / TRUE.prefill_ms(other, 0, 2048) < 2.0


def test_a_kind_of_step_that_has_hardly_run_has_no_costs() -> None:
    rng, fit = random.Random(5), StepFit()
    for _ in range(50):
        fit.note(decode_step(rng), 9.0)
    fit.note(prompt_step(rng), 100.0)
    cost = fitted(fit)
    assert cost.decode_step_ms(1, 1000) > 0
    assert (cost.prefill_base_ms, cost.prefill_token_ms, cost.prefill_context_ms) == (0, 0, 0)


def test_identical_steps_do_not_make_the_fit_diverge() -> None:
    fit, rng = LinearFit((1.0, 16.0, 1e4)), random.Random(5)
    for _ in range(20_000):
        fit.note((1.0, 4.0, 4000.0), 10 * rng.lognormvariate(0, 0.1))
    at_half = sum(c * x for c, x in zip(fit.coefficients, (1.0, 2.0, 2000.0), strict=True))
    at_same = sum(c * x for c, x in zip(fit.coefficients, (1.0, 4.0, 4000.0), strict=True))
    assert at_same == pytest.approx(10, rel=0.2)
    assert 0 < at_half <= at_same * 1.2


def test_long_prompts_are_superlinear_and_each_chunk_has_a_cost() -> None:
    assert TRUE.prefill_ms(32_768, 0, 2048) > 2 * TRUE.prefill_ms(16_384, 0, 2048)
    assert TRUE.prefill_ms(2048, 0, 256) == pytest.approx(TRUE.prefill_ms(2048, 0, 2048) + 7 * TRUE.prefill_base_ms)
