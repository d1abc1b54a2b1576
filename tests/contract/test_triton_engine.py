"""Whole models on the Triton backend against the reference: in the interpreter, or on a GPU in fp32."""

import os

import pytest
import torch

from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine import random_checkpoint
from engine.loading import load_engine
from engine.model.cuda_graph import GraphedDecoder
from kernels.reference import ReferenceKernels

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("torch sees no GPU, and Triton's interpreter is off", allow_module_level=True)
pytest.importorskip("triton")

TINY = random_checkpoint.TINY | {"num_hidden_layers": 1, "head_dim": 24, "vocab_size": 300}
MODELS = {
    "llama": TINY,
    "windows": TINY | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 9},
}


def generate(engine):
    """Tokens of three requests that run together; the second ends before the others."""
    requests = []
    for key in range(3):
        tokens = list(range(key, 5 + 6 * key))
        generation = Generation(
            request_id=f"r{key}",
            key=key,
            token_ids=tokens,
            num_prompt_tokens=len(tokens),
            sampling=SamplingParams(temperature=0.0, max_tokens=3 - key % 2, ignore_eos=True),
            cache_salt=b"",
            router_id="router",
        )
        requests.append(engine.add(generation))
    while engine.has_work:
        engine.step()
        engine.check()
    return [request.token_ids for request in requests]


@pytest.mark.parametrize(
    ("model", "quantization", "padded", "deterministic"),
    [
        ("llama", "none", True, False),
        ("windows", "none", False, False),
        ("windows", "int8", True, True),
        ("llama", "int4", False, False),
    ],
)
def test_tokens_are_those_of_the_reference(model, quantization, padded, deterministic, tmp_path):
    from kernels.triton import TritonKernels

    random_checkpoint.write(tmp_path, MODELS[model])
    device = "cuda" if HAS_GPU else "cpu"
    flags = EngineFlags(
        model=str(tmp_path),
        device=device,
        quantization=quantization,
        kv_memory="1MiB",
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=12,
        num_threads=1,
        cuda_graphs=False,
    )
    expected = generate(load_engine(tmp_path, flags, kernels=ReferenceKernels()))
    engine = load_engine(tmp_path, flags, kernels=TritonKernels(deterministic=deterministic))
    if padded:  # as for CUDA graphs, with nothing recorded
        graphed = GraphedDecoder(engine.steps.readout.decoder, engine.config, lambda compute: compute)
        engine.steps.readout.decoder = graphed
    assert generate(engine) == expected
