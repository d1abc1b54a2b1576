"""Compile the Triton backend's kernels for a GPU that need not be present: `python compile_triton.py 90`.

The ops are called as the engine calls them, on tensors without memory, while launches only compile. So the compiled
kernels are those that would run, with the same tiles, warps, stages and alignments. Prints one JSON list per kernel:
name, registers, bytes of stack (to which registers spill), bytes of shared memory, and the instruction for matrix
products.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kernels.api import Attention, AttentionMeta
from kernels.triton import TritonKernels
from kernels.triton.blocks import digest_blocks, fetch_blocks, pack_blocks, unpack_blocks
from kernels.triton.sampling import draw, log_total

BF16 = torch.bfloat16
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Target:
    """A stand-in for a driver: what Triton needs from one in order to compile."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def floats(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.float32)


def attention(
    head_dim: int,
    num_kv_heads: int,
    group: int,
    *,
    planes: int = 2,
    kernels: TritonKernels = TritonKernels(),  # noqa: B008
    **options: object,
) -> None:
    """A prefill of one long prompt beside 63 decoding sequences."""
    i32 = {"dtype": torch.int32, "device": "meta"}
    tables = torch.empty(64, 1024, **i32)
    meta = AttentionMeta(torch.empty(65, **i32), torch.empty(64, **i32), tables, 1985, 16384)
    kv = empty(4096, 8, planes, num_kv_heads, 16, head_dim)[:, 1]
    q = empty(2048, num_kv_heads * group, head_dim)
    kernels.paged_attention(q, kv, meta, Attention(head_dim**-0.5, **options))


def rope(head_dim: int, num_kv_heads: int, group: int, *, planes: int = 2, norm: bool = False) -> None:
    heads = (group + planes) * num_kv_heads
    weight = floats(head_dim) if norm else None
    where = torch.empty(64, dtype=torch.int64, device="meta")
    kv = empty(4096, 8, planes, num_kv_heads, 16, head_dim)[:, 1]
    TritonKernels().rope_and_cache(
        empty(64, heads * head_dim), floats(4096, head_dim), where, where, kv, group * num_kv_heads, num_kv_heads,
        weight, weight,
    )  # fmt: skip


def launch(capability: int) -> None:
    """Launch each head dimension with every feature that its models use: kernels with fewer need fewer resources."""
    kernels = TritonKernels()
    attention(64, 8, 8, window=128, sinks=floats(64))
    attention(80, 8, 4)  # padded
    attention(128, 8, 4)
    attention(256, 8, 2, window=4096, softcap=50.0)
    attention(576, 1, 128, planes=1)
    attention(576, 1, 16, planes=1)
    if capability == 90:  # many heads to a KV head: other instructions there
        attention(64, 8, 8)
        attention(64, 1, 64)
    rope(128, 8, 4)
    rope(128, 8, 4, norm=True)
    rope(576, 1, 128, planes=1)
    x = empty(64, 4096)
    kernels.rms_norm(x, floats(4096), 1e-6)
    kernels.add_rms_norm(x, x, floats(4096), 1e-6)
    for activation in ("silu", "gelu_tanh", "swiglu_oai"):
        kernels.gated(x, activation)

    experts(kernels, 64)
    experts(kernels, 2048)
    launch_packed(kernels)
    draw(floats(64, 128256), floats(64), torch.empty(64, 2, dtype=torch.int32, device="meta"))
    log_total(floats(64, 128256))
    blocks, packed = (torch.empty(n, 1 << 16, dtype=torch.uint8, device="meta") for n in (4096, 32))
    ids = torch.empty(32, dtype=torch.int64, device="meta")
    pack_blocks(blocks, ids, packed)
    unpack_blocks(packed, blocks, ids)
    fetch_blocks(1 << 40, torch.empty(65, dtype=torch.int64, device="meta"), blocks)
    digest_blocks(torch.empty(33, dtype=torch.int64, device="meta"), blocks)
    launch_deterministic()


def launch_deterministic() -> None:
    """Launch what differs if deterministic: attention, experts, and products of few and of many rows."""
    kernels = TritonKernels(deterministic=True)
    attention(64, 8, 8, kernels=kernels, window=128, sinks=floats(64))
    attention(80, 8, 4, kernels=kernels)
    attention(128, 8, 4, kernels=kernels)
    attention(256, 8, 2, kernels=kernels, window=4096, softcap=50.0)
    attention(576, 1, 128, kernels=kernels, planes=1)
    experts(kernels, 64)
    for num_rows, num_outputs in ((1, 4096), (64, 28672), (2048, 4096)):
        kernels.pack_linear(empty(num_outputs, 4096), empty(num_outputs))(empty(num_rows, 4096))
    kernels.pack_heads(empty(128, 576, 192))(empty(64, 128 * 192))
    launch_packed(kernels)


def launch_packed(kernels: TritonKernels) -> None:
    """Launch products of few and of many rows with weights of 8 and 4 bits."""
    for bits in (8, 4):
        for num_rows, num_outputs in ((1, 4096), (64, 28672), (2048, 4096)):
            kernels.pack_linear(empty(num_outputs, 4096), empty(num_outputs), bits)(empty(num_rows, 4096))
        experts(kernels, 64, bits)
        experts(kernels, 2048, bits)
        half = {"dtype": torch.float16}
        kernels.pack_linear(empty(4096, 4096, **half), None, bits)(empty(64, 4096, **half))


def experts(kernels: TritonKernels, num_tokens: int, bits: int = 16) -> None:
    ids, weights = torch.empty(num_tokens, 8, dtype=torch.int64, device="meta"), floats(num_tokens, 8)
    packed = kernels.pack_experts(empty(32, 1536, 2048), empty(32, 2048, 768), "silu", bits=bits)
    packed(empty(num_tokens, 2048), ids, weights)


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))


def main(capability: int) -> None:
    run, built = JITFunction.run, {}

    def only_compile(kernel, *args, grid, warmup, **kwargs):
        made = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        built[made.hash] = made

    JITFunction.run = only_compile
    driver.set_active(Target(capability))
    launch(capability)
    for made in built.values():
        product = next((name for name in ("wgmma", "mma") if f"{name}." in made.asm["ptx"]), "none")
        print(json.dumps([made.metadata.name, *usage(made.asm["cubin"]), made.metadata.shared, product]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
