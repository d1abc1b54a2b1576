"""Logits are the same bits alone or in a batch, with the prompt whole or in chunks, on any number of threads, and where
another engine computed the prompt.
"""

import random
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine.engine import Engine
from kernels.dispatch import load

MAX_TOKENS = 4
CASES = [
    ("llama", "float32", "none"),
    ("gemma2", "bfloat16", "none"),  # soft caps, windows
    ("mixtral", "float16", "none"),
    ("deepseek-v3", "bfloat16", "none"),  # compressed cache, shared experts
    ("qwen3-moe", "bfloat16", "int8"),
    ("gpt-oss", "bfloat16", "int4"),  # sinks
]


class Recording:
    """An engine that keeps the logits of each step, row by row."""

    def __init__(self, directory: Path, dtype: str, quantization: str, **flags: int) -> None:
        defaults = {"kv_memory": "4MiB", "block_size": 8, "num_threads": 1}
        config = EngineFlags(
            model=str(directory), device="cpu", dtype=dtype, quantization=quantization, **(defaults | flags)
        )
        self.engine = Engine.load(directory, config)
        self.rows: Counter[bytes] = Counter()
        decoder = self.engine.steps.readout.decoder
        compute = decoder.logits

        def logits(hidden: Tensor) -> Tensor:
            result = compute(hidden)
            self.rows.update(row.numpy().tobytes() for row in result.float())
            return result

        decoder.logits = logits

    def run(self) -> Counter[bytes]:
        """Step until nothing is left to do; the rows since the last call."""
        while self.engine.has_work:
            for output in self.engine.step().outputs:
                assert output.error is None
        rows, self.rows = self.rows, Counter()
        return rows


def generation(prompt: list[int], key: int = 0) -> Generation:
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True),
        cache_salt=bytes([key]),  # nobody finds another's blocks
        router_id="router",
    )


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


def test_logits_do_not_depend_on_company_chunks_or_threads(case):
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

    first, second = Recording(*case, max_num_batched_tokens=16), Recording(*case)
    prefill, decode = first.engine, second.engine
    source = prefill.add(generation(prompt), prefill_only=True)
    rows = first.run()
    target = decode.reserve(generation(prompt))
    assert prefill.layout == decode.layout
    layout, size = prefill.layout, prefill.layout.block_group_bytes
    for group in range(layout.num_layer_groups):
        for read, write in zip(source.block_ids, target.block_ids, strict=True):
            at = layout.offset(prefill.num_blocks, group, read)
            to = layout.offset(decode.num_blocks, group, write)
            decode.pool[to : to + size] = prefill.pool[at : at + size]
    decode.start(target, source.token_ids[-1])
    assert rows + second.run() == wanted


def test_quantized_weights_give_another_cache(tmp_path, save_family):
    save_family(tmp_path, "gpt-oss")
    prints = {
        Recording(tmp_path, "float32", quantization).engine.layout.model_fingerprint
        for quantization in ("none", "int8", "int4")
    }
    assert len(prints) == 3
