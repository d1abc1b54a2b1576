"""Ops on single rows: norms, gated activations, RoPE and the KV write."""

import pytest
import torch
from torch import Tensor

from kernels.api import Activation, Kernels
from tests.contract.kernels.backends import ACTIVATIONS, REFERENCE, Backend


@pytest.mark.parametrize(("rows", "size"), [(1, 384), (7, 100), (30, 96), (0, 64)])
def test_norms(backend: Backend, rows: int, size: int) -> None:
    x, residual, weight = backend.randn(rows, size) * 3, backend.randn(rows, size), backend.fp32(size)
    backend.check(backend.kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    got, expected = (k.add_rms_norm(x, residual, weight, 1e-6) for k in (backend.kernels, REFERENCE))
    backend.check(got[0], expected[0])
    backend.check(got[1], expected[1])


def test_norm_of_large_values_is_taken_in_fp32(backend: Backend) -> None:
    x = backend.randn(2, 64) * 300  # squares overflow fp16
    ones = torch.ones(64, device=backend.device)
    backend.check(backend.kernels.rms_norm(x, ones, 1e-6), REFERENCE.rms_norm(x, ones, 1e-6))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "size"), [(1, 1000), (9, 33), (0, 8)])
def test_gated(backend: Backend, rows: int, size: int, activation: Activation) -> None:
    gate_up = backend.randn(rows, 2 * size) * 8
    backend.check(backend.kernels.gated(gate_up, activation), REFERENCE.gated(gate_up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates_of_extreme_values(backend: Backend, activation: Activation) -> None:
    gate = torch.tensor([[-60000.0, -200.0, -90.0, 0.0, 90.0, 60000.0]]).to(backend.device, backend.dtype)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    backend.check(backend.kernels.gated(gate_up, activation), REFERENCE.gated(gate_up, activation))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("head_dim", "planes"), [(64, 2), (80, 2), (18, 2), (40, 1)])
def test_rope_and_cache(backend: Backend, norm: bool, head_dim: int, planes: int) -> None:
    num_heads, num_kv_heads, block_size, num_tokens = 4, 2, 8, 9
    qkv = backend.randn(num_tokens, (num_heads + planes * num_kv_heads) * head_dim)
    angle = torch.rand(100, head_dim // 2) * 6
    cos_sin = torch.cat([angle.cos(), angle.sin()], dim=1).to(backend.device)
    positions = torch.randint(0, 100, (num_tokens,)).to(backend.device)
    slots = torch.tensor([33, -1, 7, 8, 0, -1, 39, 16, 5]).to(backend.device)
    weights = (backend.fp32(head_dim), backend.fp32(head_dim)) if norm else (None, None)
    pool = backend.randn(5, 3, planes, num_kv_heads, block_size, head_dim)

    def run(kernels: Kernels) -> tuple[Tensor, Tensor]:
        written = pool.clone()
        q = kernels.rope_and_cache(
            qkv, cos_sin, positions, slots, written[:, 1], num_heads, num_kv_heads, *weights, eps=1e-6
        )
        return q, written

    (q, written), (expected_q, expected) = run(backend.kernels), run(REFERENCE)
    backend.check(q, expected_q)
    backend.check(written, expected)
    assert not torch.equal(written[:, 1], pool[:, 1])
    assert torch.equal(written[:, [0, 2]], pool[:, [0, 2]])  # the neighbouring layers
    untouched = [slot for slot in range(40) if slot not in slots.tolist()]
    blocks, offsets = torch.tensor(untouched) // block_size, torch.tensor(untouched) % block_size
    assert torch.equal(written[blocks, 1, :, :, offsets], pool[blocks, 1, :, :, offsets])


def test_tensors_of_another_dtype_are_refused(cpu: Backend) -> None:
    other = torch.float16 if cpu.dtype == torch.float32 else torch.float32
    with pytest.raises(TypeError, match="loaded for"):
        cpu.kernels.rms_norm(torch.ones(1, 8, dtype=other), torch.ones(8), 1e-6)
    with pytest.raises(TypeError, match="contiguous fp32"):
        cpu.kernels.rms_norm(cpu.randn(1, 8), torch.ones(8, dtype=torch.float16), 1e-6)
    with pytest.raises(TypeError, match="expected"):
        cpu.kernels.pack_linear(cpu.randn(8, 8), None)(torch.ones(1, 8, dtype=other))
