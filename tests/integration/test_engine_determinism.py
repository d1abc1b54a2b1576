"""Logits are the same bits alone or in a batch, with the prompt whole or in chunks, on any number of threads, and where
another engine computed the prompt.
"""

import random
import warnings
from pathlib import Path

import pytest
import torch

from kernels.dispatch import load
from tests.recorded_logits import MAX_TOKENS, Recording, generation, run_apart

CASES = [
    ("llama", "float32", "none"),
    ("gemma2", "bfloat16", "none"),  # soft caps, windows
    ("mixtral", "float16", "none"),
    ("deepseek-v3", "bfloat16", "none"),  # compressed cache, shared experts
    ("qwen3-moe", "bfloat16", "int8"),
    ("gpt-oss", "bfloat16", "int4"),  # sinks
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, tmp_path, save_family) -> tuple[Path, str, str]:
    name, dtype, quantization = request.param
    with warnings.catch_warnings(action="ignore"):
        if load(torch.device("cpu"), torch.float32).name == "reference":
            pytest.skip("the compiled kernels do not run on this machine")
    save_family(tmp_path, name)
    return tmp_path, dtype, quantization


@pytest.fixture(autouse=True)
def _same_threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_logits_do_not_depend_on_batch_chunks_or_threads(case):
    draw = random.Random(7)
    texts = [[draw.randrange(199) for _ in range(length)] for length in (60, 3, 1, 41, 22, 90, 60, 17, 8, 77)]
    crowd = Recording(*case, num_threads=2)
    for key, text in enumerate(texts):
        crowd.engine.add(generation(text, key))
    together = crowd.run()
    assert together.total() == len(texts) * MAX_TOKENS
    for flags in ({}, {"max_num_batched_tokens": 7}):
        alone = Recording(*case, **flags)
        for key in (0, 1, 5):
            alone.engine.add(generation(texts[key], key))
            rows = alone.run()
            assert rows.total() == MAX_TOKENS
            assert rows <= together


def test_logits_do_not_depend_on_where_the_prompt_was_computed(case):
    prompt = [(7 * i * i + 3 * i) % 199 for i in range(45)]
    whole = Recording(*case)
    whole.engine.add(generation(prompt))
    wanted = whole.run()

    assert run_apart(Recording(*case, max_num_batched_tokens=16), Recording(*case), prompt) == wanted


def test_quantized_weights_give_another_cache(tmp_path, save_family):
    save_family(tmp_path, "gpt-oss")
    prints = {
        Recording(tmp_path, "float32", quantization).engine.layout.model_fingerprint
        for quantization in ("none", "int8", "int4")
    }
    assert len(prints) == 3
