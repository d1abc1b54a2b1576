"""Sampling kernels of each CPU level draw what `engine.sampling` draws with torch, whatever the other rows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.sampling import sampler
from engine.sampling.noise import gumbel, make_keys
from kernels.api import Draw, FilteredDraw, Filters, SamplingKernels
from kernels.cpu.kernels import library
from kernels.cpu.processor import LEVELS, Level, features, supported
from kernels.cpu.sampling import kernels
from kernels.reference.ends import masked

SIZES = (1, 7, 100, 5000, 32000)


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def sampling(request: pytest.FixtureRequest) -> SamplingKernels:
    level: Level = request.param
    if level not in supported(features()):
        pytest.skip(f"this processor cannot run {level.name}")
    return kernels(library(level))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def draw(sampling: SamplingKernels) -> Draw:
    assert sampling.draw
    return sampling.draw


@pytest.fixture
def draw_filtered(sampling: SamplingKernels) -> FilteredDraw:
    assert sampling.draw_filtered
    return sampling.draw_filtered


def keys_of(num_rows: int) -> Tensor:
    seeds = np.array([0, 1, 2**64 - 1, *range(77, 77 + num_rows)][:num_rows], np.uint64)
    return torch.from_numpy(make_keys(seeds, np.arange(num_rows) + 3))


def filters_of(num_rows: int, size: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Filters:
    return Filters(
        torch.full((num_rows,), min(top_k, size) or size),
        torch.full((num_rows,), top_p),
        torch.full((num_rows,), min_p),
    )


@pytest.mark.parametrize("size", SIZES)
def test_draws_use_the_engines_noise(draw: Draw, size: int) -> None:
    logits, temperature = torch.randn(6, size) * 4, torch.tensor([0.0, 0.3, 1.0, 2.5, 0.7, 1e-5])
    noisy = logits / temperature.unsqueeze(1) + gumbel(keys_of(6), torch.arange(size, dtype=torch.int32))
    expected = torch.where(temperature > 0, noisy.argmax(-1), logits.argmax(-1))
    assert torch.equal(draw(logits, temperature, keys_of(6)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 3000},
        {"top_p": 1e-6},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.01},
        {"top_k": 10**6, "top_p": 0.5},
    ],
    ids=str,
)
def test_filters_keep_what_torch_keeps(draw_filtered: FilteredDraw, size: int, filters: dict[str, float]) -> None:
    """Of rounded logits, many are equal."""
    logits = torch.cat([torch.randn(12, size) * 3, (torch.randn(12, size) * 3).bfloat16().float()])
    temperature, kept = torch.full((24,), 0.8), filters_of(24, size, **filters)  # type: ignore[arg-type]
    expected = sampler.draw_filtered(logits / temperature.unsqueeze(1), keys_of(24), kept)
    assert torch.equal(draw_filtered(logits, temperature, keys_of(24), kept), expected)


def test_a_row_draws_the_same_token_whatever_the_other_rows_and_threads(draw_filtered: FilteredDraw) -> None:
    logits, temperature, kept = torch.randn(9, 9000) * 2, torch.rand(9), filters_of(9, 9000, 300, 0.9, 1e-4)
    together = draw_filtered(logits, temperature, keys_of(9), kept)
    for row in range(9):
        part = torch.tensor([row])
        alone = draw_filtered(logits[part], temperature[part], keys_of(9)[part], kept.at(part))
        assert alone.tolist() == [together[row]]


def test_excluded_tokens_are_never_drawn(draw: Draw, draw_filtered: FilteredDraw) -> None:
    """Tokens that a grammar forbids, and those whose probability is 0 in fp32."""
    logits = torch.full((300, 2000), float("-inf"))
    logits[:, 1234], logits[:, 77], logits[:, 5] = 1.0, 0.5, -200.0
    drawn = draw(logits, torch.ones(300), keys_of(300))
    assert set(drawn.tolist()) == {1234, 77}
    kept = filters_of(300, 2000, top_k=1000, top_p=0.999)
    assert set(draw_filtered(logits, torch.ones(300), keys_of(300), kept).tolist()) == {1234, 77}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_rows_without_an_order_still_yield_a_token(draw_filtered: FilteredDraw, value: str) -> None:
    """They end in an error later; until then nothing may be read or written out of bounds."""
    logits = torch.randn(8, 3000)
    logits[:4, ::2] = float(value)
    logits[4:] = float(value)
    for filters in ({"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 0}, {"top_k": 2000, "top_p": 0.1}):
        kept = filters_of(8, 3000, **filters)  # type: ignore[arg-type]
        drawn = draw_filtered(logits, torch.full((8,), 0.5), keys_of(8), kept)
        assert ((drawn >= 0) & (drawn < 3000)).all()


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000, 32003])
def test_masks(sampling: SamplingKernels, size: int) -> None:
    logits, words = torch.randn(5, size), torch.randint(-(2**31), 2**31, (5, -(-size // 32)), dtype=torch.int32)
    words[0], words[1] = 0, -1
    got, expected = logits.clone(), logits.clone()
    sampling.mask(got, words)
    masked(expected, words)
    assert torch.equal(got, expected)
    assert got[0].isneginf().all()
    assert torch.equal(got[1], logits[1])


def test_a_mask_for_another_vocabulary_is_refused(sampling: SamplingKernels) -> None:
    with pytest.raises(TypeError, match="a bit for each of 33 tokens"):
        sampling.mask(torch.zeros(1, 33), torch.zeros(1, 1, dtype=torch.int32))


def test_no_rows(draw: Draw) -> None:
    assert draw(torch.zeros(0, 10), torch.zeros(0), keys_of(0)).shape == (0,)


def test_arrays_of_another_type_or_length_are_refused(draw: Draw) -> None:
    logits, temperature = torch.zeros(2, 10), torch.zeros(2)
    for arguments in (
        (logits.double(), temperature, keys_of(2)),
        (logits, temperature, keys_of(4)[::2]),
        (logits, temperature[:1], keys_of(2)),
        (logits, temperature, keys_of(3)),
    ):
        with pytest.raises(TypeError, match="expected contiguous"):
            draw(*arguments)
    with pytest.raises(ValueError, match="no token"):
        draw(torch.zeros(2, 0), temperature, keys_of(2))
