"""What the Triton backend launches compiles for the GPUs that it is meant for, and fits them: no register spills.

Compiling wants kernels that were imported without the interpreter, so `compile_triton.py` runs in processes of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that a block may use
NUM_WGMMA_ATTENTIONS = 12  # prefills of head dimensions up to 256, and decodes of 64 and more heads to a KV head
KERNELS = {
    *("prefill_kernel", "decode_kernel", "merge_kernel", "rope_and_cache_kernel"),
    *("rms_norm_kernel", "add_rms_norm_kernel", "gated_kernel"),
    *("sort_kernel", "experts_kernel", "sum_kernel", "linear_kernel", "widen_kernel"),
    *("draw_kernel", "choose_kernel", "log_total_kernel", "copy_blocks_kernel"),
    "fetch_blocks_kernel",
}


class Built(NamedTuple):
    name: str
    num_registers: int
    stack_bytes: int
    shared_bytes: int
    product: str  # the instruction of matrix products: wgmma, mma or none


@pytest.fixture(scope="module")
def compilers(tmp_path_factory):
    """Compilers for both targets, started at the same time."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    started = {
        capability: subprocess.Popen(
            [sys.executable, Path(__file__).with_name("compile_triton.py"), str(capability)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for capability in SHARED_BYTES
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_without_spills(compilers, capability: int) -> None:
    out, errors = compilers[capability].communicate()
    assert compilers[capability].returncode == 0, errors
    built = [Built(*json.loads(line)) for line in out.splitlines()]
    assert {kernel.name for kernel in built} == KERNELS
    assert [kernel for kernel in built if kernel.stack_bytes > 0] == []
    assert [kernel for kernel in built if kernel.shared_bytes > SHARED_BYTES[capability]] == []
    products = [kernel.product for kernel in built if kernel.name in ("prefill_kernel", "decode_kernel")]
    assert {"mma"} <= set(products) <= {"mma", "wgmma"}
    if capability == 90:  # tiles too small for wgmma would compile as well, and run at half the speed
        assert products.count("wgmma") == NUM_WGMMA_ATTENTIONS
        assert {kernel.product for kernel in built if kernel.name == "linear_kernel"} == {"wgmma"}
        experts = [kernel.product for kernel in built if kernel.name == "experts_kernel"]
        assert experts.count("mma") == 2  # gates and ups, and downs, of few rows in 16 bits
