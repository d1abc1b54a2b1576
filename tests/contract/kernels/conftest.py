"""Fixtures of the suite that every kernel backend has to pass."""

import pytest
import torch

from kernels.cpu.processor import LEVELS, features, supported
from tests.contract.kernels.backends import DTYPES, Backend, cpu_backend, triton_backend


@pytest.fixture(params=[*(f"cpu-{level.name}" for level in LEVELS), "triton"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def backend(name: str, request: pytest.FixtureRequest) -> Backend:
    torch.manual_seed(0)
    if name != "triton":
        return cpu_backend(name, request.param)
    made = triton_backend(request.param)
    others = [index for param, index in request.node.callspec.indices.items() if param not in ("name", "backend")]
    if made.device.type == "cpu" and made.dtype == torch.float16 and any(others):
        pytest.skip("in the interpreter fp16 is fp32 and a few casts: the first of a test's cases will do")
    return made


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def cpu(dtype: torch.dtype) -> Backend:
    torch.manual_seed(0)
    return cpu_backend(f"cpu-{supported(features())[0].name}", dtype)


@pytest.fixture(params=[f"cpu-{level.name}" for level in LEVELS])
def each_cpu(request: pytest.FixtureRequest, dtype: torch.dtype) -> Backend:
    torch.manual_seed(0)
    return cpu_backend(request.param, dtype)
