"""The parts of the GPU benchmarks that need no GPU."""

import pytest
import torch

from bench import gpu_decode, gpu_kernels
from engine.random_checkpoint import TINY


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", [gpu_kernels, gpu_decode])
def test_without_a_gpu_it_says_so(bench, capsys):
    assert bench.main([]) == 1
    assert "torch sees none" in capsys.readouterr().err


def test_a_model_made_of_random_tensors_decodes():
    config = gpu_decode.engine_config(TINY, "cpu", num_seqs=3, context=40)
    bench = gpu_decode.Bench(TINY, config)
    assert 0 < bench.step_s(bench.decoder, 3, 40, 4) < 10
    per_layer = 64 * (64 + 2 * 32 + 64) + 3 * 64 * 160 + 2 * 64
    assert bench.weight_bytes == 2 * (4 * per_layer + 64)  # the tied embedding is read but rows
