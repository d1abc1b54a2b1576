"""Requests, and engines on a tiny random checkpoint."""

import pytest

from baton.kv.prefix_hash import root_hash
from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine import random_checkpoint
from engine.loading import load_engine
from engine.request import Request
from kernels.reference import ReferenceKernels


@pytest.fixture
def make_generation():
    def make(token_ids, *, key=0, num_prompt_tokens=None, cache_salt=b"", **sampling):
        return Generation(
            request_id=f"r{key}",
            key=key,
            token_ids=list(token_ids),
            num_prompt_tokens=len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
            sampling=SamplingParams(**({"temperature": 0.0, "max_tokens": 8} | sampling)),
            cache_salt=cache_salt,
            router_id="router",
        )

    return make


@pytest.fixture
def make_request(make_generation):
    def make(token_ids, *, block_size=4, prefill_only=False, cache_salt=b"", **options):
        generation = make_generation(token_ids, cache_salt=cache_salt, **options)
        return Request(generation, root_hash("model", cache_salt), block_size, 0.0, prefill_only=prefill_only)

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A directory with a 4-layer Llama, vocabulary 512, 512 positions, fp32."""
    return random_checkpoint.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_engine(tiny_model):
    def make(model_dir=tiny_model, kernels=None, **flags):
        defaults = {"kv_memory": "2MiB", "max_num_batched_tokens": 64, "block_size": 8, "num_threads": 1}
        flags = EngineFlags(model=str(model_dir), device="cpu", **(defaults | flags))
        return load_engine(model_dir, flags, kernels=kernels or ReferenceKernels())

    return make


@pytest.fixture
def run():
    """Step until nothing is left to do; returns all outputs. Blocks are checked after each step."""

    def run_all(engine):
        outputs = []
        while engine.has_work:
            outputs += engine.step().outputs
            engine.check()
        return outputs

    return run_all
