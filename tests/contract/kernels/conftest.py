"""Fixtures of the suite that every kernel backend must pass."""

import pytest
import torch

from kernels.cpu.processor import LEVELS, features, supported
from tests.contract.kernels.backends import DTYPES, Backend, cpu_backend, triton_backend

CPU_LEVELS = [f"cpu-{level.name}" for level in LEVELS]
# Test modules for which Triton runs the same kernels, deterministic or not, by dtype.
_THE_SAME = {torch.float32: ("test_rows", "test_experts"), torch.float16: ("test_rows",)}


@pytest.fixture(params=[*CPU_LEVELS, "triton", "triton-deterministic"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def backend(name: str, request: pytest.FixtureRequest) -> Backend:
    torch.manual_seed(0)
    if name.startswith("cpu"):
        return cpu_backend(name, request.param)
    made = triton_backend(request.param, deterministic=name != "triton")
    if made.is_interpreted and name != "triton" and request.path.stem in _THE_SAME.get(made.dtype, ()):
        pytest.skip("Triton runs the same kernels with the same tiles here")
    others = [index for param, index in request.node.callspec.indices.items() if param not in ("name", "backend")]
    if made.is_interpreted and made.dtype == torch.float16 and any(others):
        pytest.skip("in the interpreter fp16 is fp32 with a few casts: the first case of a test suffices")
    return made


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def cpu(dtype: torch.dtype) -> Backend:
    return _steady("cpu", dtype)


@pytest.fixture(params=["cpu", "triton"])
def steady(request: pytest.FixtureRequest, dtype: torch.dtype) -> Backend:
    """A backend that promises a row the same bits whatever the other rows."""
    return _steady(request.param, dtype)


@pytest.fixture(params=CPU_LEVELS)
def each_cpu(request: pytest.FixtureRequest, dtype: torch.dtype) -> Backend:
    return _steady(request.param, dtype)


@pytest.fixture(params=[*CPU_LEVELS, "triton"])
def each_steady(request: pytest.FixtureRequest, dtype: torch.dtype) -> Backend:
    return _steady(request.param, dtype)


def _steady(name: str, dtype: torch.dtype) -> Backend:
    torch.manual_seed(0)
    if name == "triton":
        return triton_backend(dtype, deterministic=True)
    return cpu_backend(f"cpu-{supported(features())[0].name}" if name == "cpu" else name, dtype)
