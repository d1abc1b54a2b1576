"""Every Triton kernel compiles for the GPUs that it is meant for, in the types and shapes of real models.

Compiling wants kernels that were imported without the interpreter, so it runs in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that a block may use

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.triton import activation, decode, norm, prefill, rope

capability, dtype = int(sys.argv[1]), sys.argv[2]
x, i32, i64 = f"*{dtype}", "i32", "i64"
triton_type = getattr(triton.language, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype])

def shape(head_dim):
    return dict(GROUP=4, NUM_KV_HEADS=8, HEAD_DIM=head_dim, BLOCK_SIZE=16, DIM=128, DOT=triton_type)

where = dict(query_start_ptr="*i32", seq_lens_ptr="*i32")
paged = dict(where, q_ptr=x, kv_ptr=x, tables_ptr="*i32", table_stride=i32, block_stride=i64, scale="fp32", window=i32)
heads = dict(NUM_HEADS=32, NUM_KV_HEADS=8, HEAD_DIM=128, BLOCK_SIZE=16, HALF=64)
rotated = dict(
    qkv_ptr=x, cos_sin_ptr="*fp32", positions_ptr="*i64", slots_ptr="*i64", kv_ptr=x, q_ptr=x,
    q_norm_ptr=x, k_norm_ptr=x, eps="fp32", block_stride=i64,
)
cases = [
    (norm.rms_norm_kernel, dict(x_ptr=x, weight_ptr=x, out_ptr=x, size=i32, eps="fp32"), dict(BLOCK=4096), 8, 1),
    (norm.add_rms_norm_kernel,
     dict(x_ptr=x, residual_ptr=x, weight_ptr=x, out_ptr=x, total_ptr=x, size=i32, eps="fp32"), dict(BLOCK=4096), 8, 1),
    (activation.silu_mul_kernel, dict(gate_up_ptr=x, out_ptr=x, size=i32), dict(BLOCK=activation.BLOCK), 4, 1),
    (rope.rope_and_cache_kernel, rotated, dict(heads, Q_NORM=True, K_NORM=True), 1, 1),
    (rope.rope_and_cache_kernel, rotated, dict(heads, Q_NORM=False, K_NORM=False), 1, 1),
    (prefill.prefill_kernel, dict(paged, out_ptr=x), dict(shape(128), ROWS=64, KEYS=prefill.KEYS), 4, 2),
    (prefill.prefill_kernel, dict(paged, out_ptr=x), dict(shape(80), ROWS=16, KEYS=prefill.KEYS), 4, 2),
    (decode.decode_kernel, dict(paged, partial_ptr="*fp32", num_splits=i32),
     dict(shape(128), ROWS=16, KEYS=decode.KEYS, SPLIT=decode.SPLIT), 4, 3),
    (decode.merge_kernel, dict(where, partial_ptr="*fp32", out_ptr=x, window=i32, num_splits=i32),
     dict(NUM_HEADS=32, HEAD_DIM=128, KEYS=decode.KEYS, DIM=128, SPLIT=decode.SPLIT), 1, 1),
]
made = []
for kernel, arguments, constants, num_warps, num_stages in cases:
    signature = {name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()})
    options = dict(num_warps=num_warps, num_stages=num_stages)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    made.append((kernel.__name__, len(built.asm["cubin"]), built.metadata.shared))
print(json.dumps(made))
"""


@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "fp16")])
def test_kernels_compile_ahead_of_time(capability: int, dtype: str, tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, str(capability), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert len(made) == 9
    for name, cubin_bytes, shared_bytes in made:
        assert cubin_bytes > 0, name
        assert shared_bytes <= SHARED_BYTES[capability], name
