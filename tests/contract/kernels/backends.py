"""The kernel backends under test, each compared with `kernels.reference`.

Triton runs on the GPU if there is one, else in its interpreter, which computes bf16 wrongly and needs small shapes.
"""

import os
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor

from kernels.api import Activation, Kernels
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.processor import features, supported
from kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
ACTIVATIONS = get_args(Activation)


@dataclass(frozen=True)
class Backend:
    kernels: Kernels
    dtype: torch.dtype
    device: torch.device

    @property
    def is_interpreted(self) -> bool:
        """Whether it runs in Triton's interpreter, which is slow."""
        return self.kernels.name == "triton" and self.device.type == "cpu"

    def check(self, got: Tensor, expected: Tensor) -> None:
        assert got.dtype == expected.dtype == self.dtype
        assert got.shape == expected.shape
        limit = TOLERANCE[self.dtype]
        torch.testing.assert_close(got.cpu().float(), expected.cpu().float(), atol=limit, rtol=limit)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device, self.dtype)

    def fp32(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device)


def triton_backend(dtype: torch.dtype, *, deterministic: bool = False) -> Backend:
    if torch.cuda.is_available():
        device = torch.device("cuda")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("torch sees no GPU, and Triton's interpreter is off")
    elif dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bf16 wrongly")
    else:
        device = torch.device("cpu")
    kernels = pytest.importorskip("kernels.triton").TritonKernels(deterministic=deterministic)
    return Backend(kernels, dtype, device)


def cpu_backend(name: str, dtype: torch.dtype) -> Backend:
    level = next((level for level in supported(features()) if name == f"cpu-{level.name}"), None)
    if level is None:
        pytest.skip(f"this processor cannot run {name}")
    return Backend(CPUKernels(dtype, level), dtype, torch.device("cpu"))
