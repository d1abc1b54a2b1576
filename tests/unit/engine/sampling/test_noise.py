import numpy as np
import torch

from engine.sampling.noise import gumbel, make_keys, uniform


def noise(seeds, positions, num_tokens):
    keys = torch.from_numpy(make_keys(np.array(seeds, np.uint64), np.array(positions, np.int64)))
    return gumbel(keys, torch.arange(num_tokens, dtype=torch.int32))


def test_a_row_depends_on_seed_and_position_alone():
    together = noise([1, 2, 1, 2**64 - 1], [5, 5, 6, 0], 1000)
    for row, (seed, position) in enumerate([(1, 5), (2, 5), (1, 6), (2**64 - 1, 0)]):
        assert torch.equal(together[row], noise([seed], [position], 1000)[0])
    assert len({tuple(row[:4].tolist()) for row in together}) == 4


def test_a_token_has_the_same_noise_among_candidates():
    keys = torch.from_numpy(make_keys(np.array([3, 4], np.uint64), np.array([7, 8])))
    all_tokens = gumbel(keys, torch.arange(500, dtype=torch.int32))
    some = torch.tensor([[499, 3, 77], [5, 4, 3]], dtype=torch.int32)
    assert torch.equal(gumbel(keys, some), all_tokens.gather(1, some.long()))


def test_uniform_never_reaches_its_ends():
    ends = uniform(torch.tensor([-(2**31), -1, 0, 2**31 - 1], dtype=torch.int32))
    assert ends.tolist() == [2.0**-24, 0.5 - 2.0**-24, 0.5 + 2.0**-24, 1 - 2.0**-24]


def test_distribution_is_gumbel():
    values = noise(range(64), range(64), 20_000).double()
    assert abs(values.mean().item() - 0.57722) < 0.005
    assert abs(values.var().item() - np.pi**2 / 6) < 0.01
    levels = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    below = torch.tensor([(values < level).double().mean() for level in levels])
    assert torch.allclose(below, (-(-levels).exp()).exp(), atol=2e-3)
    assert values.isfinite().all()


def test_neighbouring_seeds_positions_and_tokens_are_uncorrelated():
    by_seed = noise(range(2000), [0] * 2000, 50).double()
    by_position = noise([0] * 2000, range(2000), 50).double()
    for values in (by_seed, by_position):
        correlations = torch.corrcoef(values.T) - torch.eye(50, dtype=torch.float64)
        assert correlations.abs().max() < 0.12  # 5 sigma of 1 / sqrt(2000)
        neighbours = torch.corrcoef(torch.stack((values[:-1].flatten(), values[1:].flatten())))
        assert abs(neighbours[0, 1]) < 0.016


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    num_draws = 40_000
    winners = (logits + noise([9] * num_draws, range(num_draws), 4)).argmax(-1)
    counts = torch.bincount(winners, minlength=4).double()
    wanted = logits.double().softmax(-1) * num_draws
    chi_square = ((counts - wanted) ** 2 / wanted).sum().item()
    assert chi_square < 21.1  # 3 degrees of freedom, 1 in 10,000
