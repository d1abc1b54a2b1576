"""The parts of the GPU benchmarks that need no GPU."""

import os
import time

import pytest
import torch

from bench import _gpu, _gpu_products, gpu_decode, gpu_kernels
from engine.random_checkpoint import TINY


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", [gpu_kernels, gpu_decode])
def test_without_a_gpu_it_says_so(bench, capsys):
    assert bench.main([]) == 1
    assert "torch sees none" in capsys.readouterr().err


def test_a_model_made_of_random_tensors_decodes():
    config = gpu_decode.engine_config(TINY, "cpu", num_seqs=3, context=40)
    bench = gpu_decode.Bench(TINY, config, deterministic=True)
    for runs_ahead in (False, True):
        assert 0 < bench.step_s(bench.decoder, 3, 40, 4, runs_ahead) < 10
    per_layer = 64 * (64 + 2 * 32 + 64) + 3 * 64 * 160 + 2 * 64
    assert bench.weight_bytes == 2 * (4 * per_layer + 64)  # of the tied embedding only single rows are read


def test_a_step_reads_less_of_quantised_weights():
    config = gpu_decode.engine_config(TINY, "cpu", num_seqs=3, context=40, quantization="int4")
    bench = gpu_decode.Bench(TINY, config, deterministic=True)
    per_layer = 64 * (64 + 2 * 32 + 64) + 3 * 64 * 160
    assert bench.weight_bytes == 4 * per_layer * (4 + 1) // 8 + 2 * (4 * 2 * 64 + 64)  # a scale is one bit per weight


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's interpreter is off")
def test_every_line_of_the_kernels_is_computed(monkeypatch):
    """Run every kernel line in the interpreter, at small shapes, to check that it runs at all."""

    def seconds(run, repeats):
        start_s = time.perf_counter()
        run()
        return time.perf_counter() - start_s

    everywhere = {"DEVICE": "cpu", "seconds": seconds}
    small = {"NUM_TOKENS": 32, "HIDDEN": 64, "FFN": 48, "VOCAB": 300}
    small |= {"NUM_HEADS": 2, "NUM_KV_HEADS": 1, "HEAD_DIM": 16}
    small |= {"POOL_BLOCKS": 8, "BLOCK_BYTES": 512, "PACKED_BLOCKS": 4, "STAGED_BLOCKS": 2}
    small |= {"DECODE_SHAPES": [(2, 40, 1, 2, 16, 2)], "PREFILL_SHAPES": [(2, 40, 1, 2, 16)]}
    products = {"EXPERT_SHAPES": [(5, 4, 2, 32, 32)], "LINEAR_SHAPES": [(32, 64)]}
    products |= {"LINEAR_ROWS": (2,), "QUANTIZED_ROWS": (2,)}
    for module, values in (
        (_gpu, everywhere | {"MATMUL": 16}),
        (gpu_kernels, everywhere | small),
        (_gpu_products, everywhere | products),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    lines = [*gpu_kernels.decode_lines(1, 1e9, 1e12), *gpu_kernels.expert_lines(1, 1e9, 1e12)]
    lines += [*gpu_kernels.moving_lines(1, 1e9), *gpu_kernels.staging_lines(1), *gpu_kernels.prefill_lines(1)]
    lines += [*gpu_kernels.linear_lines(1, 1e9, 1e12), *gpu_kernels.quantized_lines(1, 1e9, 1e12)]
    assert _gpu.matmul_flops(1) > 0
    assert len(lines) == 2 + 4 + 10 + 3 + 2 + 2 + 2
