import pytest
import torch

from engine.model.rope import RopeConfig
from engine.model.rotary import cos_sin_table, rotary_order
from kernels.reference.kernels import rotate


def turned(x, angles, rotary_dim, interleaved):
    """RoPE as in the papers: pairs of the first `rotary_dim` dimensions are complex numbers. x: [T, D]."""
    pairs = x[:, :rotary_dim].unflatten(-1, (-1, 2) if interleaved else (2, -1))
    first, second = (pairs[..., 0], pairs[..., 1]) if interleaved else (pairs[:, 0], pairs[:, 1])
    result = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    result = torch.stack((result.real, result.imag), dim=-1 if interleaved else 1).flatten(1)
    return torch.cat((result, x[:, rotary_dim:]), dim=-1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (16, 8), (16, 12), (10, 6), (24, 2)])
def test_scores_are_those_of_the_checkpoints_order(head_dim, rotary_dim, interleaved):
    q, k = torch.randn(2, 9, head_dim)
    frequencies = 100.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.outer(torch.arange(9.0), frequencies)
    wanted = turned(q, angles, rotary_dim, interleaved) @ turned(k, angles, rotary_dim, interleaved).T

    order = rotary_order(head_dim, rotary_dim, interleaved=interleaved)
    assert sorted(order.tolist()) == list(range(head_dim))
    at = cos_sin_table(RopeConfig(theta=100.0), rotary_dim, head_dim, 9).unsqueeze(1)
    found = rotate(q[:, order].unsqueeze(1), at)[:, 0] @ rotate(k[:, order].unsqueeze(1), at)[:, 0].T
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_head_rotated_in_halves_keeps_its_order():
    assert rotary_order(12, 12, interleaved=False).tolist() == list(range(12))


def test_dimensions_that_are_not_rotated_are_not_scaled_either():
    rope = RopeConfig(kind="yarn", values={"factor": 4.0, "attention_factor": 3.0})
    table = cos_sin_table(rope, 4, 12, 5).view(5, 2, 6)
    assert torch.equal(table[:, 0, 2:], torch.ones(5, 4))
    assert torch.equal(table[:, 1, 2:], torch.zeros(5, 4))
    assert torch.equal(table[0, 0, :2], torch.full((2,), 3.0))


@pytest.mark.parametrize(("stretched", "name"), [(False, "short_factor"), (True, "long_factor")])
def test_longrope_has_other_factors_for_stretched_requests(stretched, name):
    values = {"short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0], "original_max_position_embeddings": 8}
    rope = RopeConfig(kind="longrope", max_position_embeddings=64, values=values)
    scale = 2.0  # sqrt(1 + ln(64 / 8) / ln 8)^2 = 2, so cosines are scaled by its root
    frequencies = torch.tensor([1.0, 0.01]) / torch.tensor(values[name])
    cos = torch.outer(torch.arange(9.0), frequencies).cos() * scale**0.5
    assert torch.allclose(cos_sin_table(rope, 4, 4, 9, stretched=stretched)[:, :2], cos, atol=1e-6)


def test_dynamic_scaling_is_for_stretched_requests_alone():
    rope = RopeConfig(kind="dynamic", max_position_embeddings=8, values={"factor": 2.0})
    assert torch.equal(cos_sin_table(rope, 4, 4, 20), cos_sin_table(RopeConfig(), 4, 4, 20))
    stretched = RopeConfig(theta=10000.0 * (2 * 20 / 8 - 1) ** 2)
    assert torch.equal(cos_sin_table(rope, 4, 4, 20, stretched=True), cos_sin_table(stretched, 4, 4, 20))
