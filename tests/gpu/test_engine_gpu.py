"""The engine draws the same tokens on a GPU as on a CPU: with and without CUDA graphs, running ahead or not."""

import dataclasses
import itertools

import pytest
import torch

from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine import random_checkpoint
from engine.engine import Engine
from engine.loading import load_engine
from engine.random_checkpoint import TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return random_checkpoint.write(tmp_path_factory.mktemp("tiny"), TINY | {"head_dim": 64})


def generate(model_dir, num_requests, runs_ahead=None, **flags):
    """Tokens of requests of different lengths, greedy and sampled, that run together."""
    defaults = {"kv_memory": "16MiB", "max_num_seqs": 16, "max_num_batched_tokens": 100, "num_threads": 2}
    engine = load_engine(model_dir, EngineFlags(model=str(model_dir), **(defaults | flags)))
    if runs_ahead is not None:
        config = dataclasses.replace(engine.config, runs_ahead=runs_ahead)
        engine = Engine(config, engine.model_config, engine.steps.readout.decoder, engine._cache)
    requests = []
    for key in range(num_requests):
        temperature = 0.8 if key % 3 == 2 else 0.0
        sampling = SamplingParams(temperature=temperature, seed=key, max_tokens=10 + 3 * key, ignore_eos=True)
        tokens = list(range(key, 20 + 11 * key))
        generation = Generation(
            request_id=f"r{key}",
            key=key,
            token_ids=tokens,
            num_prompt_tokens=len(tokens),
            sampling=sampling,
            cache_salt=b"",
            router_id="router",
        )
        requests.append(engine.add(generation))
    while engine.has_work:
        engine.step()
        engine.check()
    return [request.token_ids for request in requests]


@pytest.mark.parametrize(("num_requests", "quantization"), [(1, "none"), (5, "none"), (5, "int8"), (5, "int4")])
def test_tokens_are_those_of_the_cpu(model_dir, num_requests, quantization):
    on_cpu = generate(model_dir, num_requests, device="cpu", quantization=quantization)
    for cuda_graphs, runs_ahead in itertools.product((True, False), repeat=2):
        flags = {"device": "cuda", "cuda_graphs": cuda_graphs, "quantization": quantization}
        assert generate(model_dir, num_requests, runs_ahead, **flags) == on_cpu


def test_steps_run_ahead_unless_configured_otherwise(model_dir):
    flags = EngineFlags(model=str(model_dir), kv_memory="16MiB", max_num_seqs=4, device="cuda", cuda_graphs=False)
    assert load_engine(model_dir, flags).config.runs_ahead


@pytest.mark.parametrize(("num_requests", "quantization"), [(1, "none"), (13, "none"), (13, "int8"), (13, "int4")])
def test_graphs_change_nothing_in_bf16(model_dir, num_requests, quantization):
    flags = {"device": "cuda", "dtype": "bfloat16", "quantization": quantization}
    with_graphs = generate(model_dir, num_requests, cuda_graphs=True, **flags)
    without = generate(model_dir, num_requests, cuda_graphs=False, **flags)
    # A padded batch may take another product of cuBLAS, so a near tie may fall otherwise; most do not.
    same = sum(one == other for one, other in zip(with_graphs, without, strict=True))
    assert same >= 0.7 * num_requests
