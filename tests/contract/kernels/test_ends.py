"""Ops at the two ends of a model: embedding, and what is read off the output head's results."""

import pytest
import torch

from tests.contract.kernels.backends import REFERENCE, Backend


@pytest.mark.parametrize("scale", [1.0, 27.7])
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 768), (9, 33), (0, 8)])
def test_embedding(backend: Backend, num_tokens: int, size: int, scale: float) -> None:
    table, token_ids = backend.randn(50, size), torch.randint(0, 50, (num_tokens,)).to(backend.device)
    got = backend.kernels.embed(token_ids, table, scale)
    backend.check(got, REFERENCE.embed(token_ids, table, scale))
    if scale == 1.0:
        assert torch.equal(got, table[token_ids])


def test_a_token_that_the_table_does_not_have_gets_nan(cpu: Backend) -> None:
    got = cpu.kernels.embed(torch.tensor([-1, 4, 5, 2**62]), cpu.randn(5, 20), 1.0)
    assert got.isnan().all(1).tolist() == [True, False, True, True]


def test_token_ids_of_another_type_are_refused(cpu: Backend) -> None:
    with pytest.raises(TypeError, match="int64"):
        cpu.kernels.embed(torch.tensor([1], dtype=torch.int32), cpu.randn(5, 20), 1.0)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize(("rows", "size"), [(1, 32000), (5, 1003), (3, 7), (0, 8)])
def test_logits(backend: Backend, rows: int, size: int, softcap: float) -> None:
    x = backend.randn(rows, size) * 4
    got, expected = backend.kernels.read_logits(x, softcap), REFERENCE.read_logits(x, softcap)
    assert got.values.dtype == torch.float32
    torch.testing.assert_close(got.values, expected.values, atol=1e-5, rtol=1e-6)
    assert got.is_finite.tolist() == [True] * rows
    if got.largest is not None:
        assert torch.equal(got.largest, got.values.argmax(-1))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_rows_that_are_not_finite_are_told_apart(backend: Backend, value: str) -> None:
    x = backend.randn(40, 100)
    bad = range(3, 40, 4)
    for row in bad:
        x[row, 37 + row] = float(value)
    got = backend.kernels.read_logits(x, 0.0)
    assert [row for row, is_finite in enumerate(got.is_finite.tolist()) if not is_finite] == list(bad)


def test_of_equal_logits_the_first_is_the_largest(each_cpu: Backend) -> None:
    x = torch.zeros(4, 500)
    x[0, [100, 101, 499]] = 1
    x[1, [496, 499]] = 1
    x[2] = float("-inf")
    x[3] = float("nan")
    x[3, 77] = 1
    largest = each_cpu.kernels.read_logits(x.to(each_cpu.dtype), 0.0).largest
    assert largest is not None
    assert largest.tolist() == [100, 496, 0, 77]
