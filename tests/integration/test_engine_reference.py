"""The engine against Hugging Face's models: the same greedy tokens, however the scheduler arrives at them.

The engine's output is fed to transformers' model as a whole: given the tokens before it, every token must be the
likeliest, with the same log-probability.
"""

import statistics
import warnings

import pytest
import torch

from baton.process.settings import EngineFlags
from engine.loading import load_engine
from kernels.api import Kernels
from kernels.dispatch import load
from kernels.reference import ReferenceKernels
from tests.integration.engine_runs import (
    MAX_TOKENS,
    ahead,
    assert_same,
    engine_of,
    generation,
    hand_over,
    outputs,
    prompts,
    run,
)


@pytest.fixture(params=["reference", "compiled"])
def kernels(request) -> Kernels:
    return ReferenceKernels() if request.param == "reference" else compiled()


def compiled() -> Kernels:
    with warnings.catch_warnings(action="ignore"):
        kernels = load(torch.device("cpu"), torch.float32)
    if kernels.name == "reference":
        pytest.skip("the compiled kernels do not run on this machine")
    return kernels


def test_same_tokens_batched_with_chunks(family, kernels):
    engine = engine_of(family.directory, kernels)
    requests = [engine.add(generation(text, key)) for key, text in enumerate(prompts(3, 61, 8, 24, 40))]
    logprobs = run(engine)
    for request in requests:
        assert len(outputs(request)) == MAX_TOKENS
        assert_same(family.model, request, logprobs[request.request_id])


def test_same_tokens_if_steps_run_ahead(family):
    engine = ahead(engine_of(family.directory, compiled()))
    requests = [engine.add(generation(text, key)) for key, text in enumerate(prompts(3, 61, 8))]
    logprobs = run(engine)
    for request in requests:
        assert len(outputs(request)) == MAX_TOKENS
        assert_same(family.model, request, logprobs[request.request_id])


def test_same_bits_whatever_the_batch_and_the_chunks(family):
    kernels, texts = compiled(), prompts(3, 37, 21)
    together = engine_of(family.directory, kernels)
    requests = [together.add(generation(text, key, max_tokens=4)) for key, text in enumerate(texts)]
    wanted = run(together)
    alone = engine_of(family.directory, kernels, max_num_batched_tokens=11)
    for request, text in zip(requests, texts, strict=True):
        again = alone.add(generation(text, 9, max_tokens=4))
        assert run(alone)["r9"] == wanted[request.request_id]
        assert outputs(again) == outputs(request)


def test_same_tokens_alone_preempted_and_from_the_cache(family):
    block_bytes = engine_of(family.directory).layout.block_bytes
    engine = engine_of(family.directory, kv_memory=str(16 * block_bytes), max_num_batched_tokens=64)
    texts = prompts(38, 37, 30)
    requests = [engine.add(generation(text, key, max_tokens=40)) for key, text in enumerate(texts)]
    run(engine)
    assert engine.num_preemptions > 0
    for request in requests:
        assert len(outputs(request)) == 40
        assert_same(family.model, request)
    for num_cached_tokens in (0, 32):  # evicted by the others at first, then all but the block of the last token
        again = engine.add(generation(texts[0], 9, max_tokens=40))
        run(engine)
        assert outputs(again) == outputs(requests[0])
        assert again.num_cached_tokens >= num_cached_tokens


@pytest.mark.parametrize("name", ["llama", "llama-bias-untied", "mixtral", "deepseek-v3", "gpt-oss"])
def test_sharded_checkpoint(name, tmp_path, save_family):
    model = save_family(tmp_path, name, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    fractions: list[float] = []
    flags = EngineFlags(model=str(tmp_path), kv_memory="1MiB", num_threads=1, device="cpu")
    engine = load_engine(tmp_path, flags, fractions.append)
    request = engine.add(generation(*prompts(20)))
    run(engine)
    assert_same(model, request)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt-oss", "deepseek-v3-halves"])
def test_logits_in_bfloat16_are_close(name, tmp_path, save_family):
    """They are about as close to the fp32 model as those of transformers in bfloat16.

    Where two experts are nearly equal a token may go to the other one, so the middle of several prompts counts.
    """
    narrow = save_family(tmp_path, name, torch.bfloat16)
    model = save_family(tmp_path / "fp32", name)
    engine = engine_of(tmp_path)
    assert engine.layout.dtype == "bfloat16"
    requests = [engine.add(generation(text, key, max_tokens=1)) for key, text in enumerate(prompts(*range(20, 65, 5)))]
    logprobs, ours, theirs = run(engine), [], []
    for request in requests:
        [found] = logprobs[request.request_id]
        tokens, ids = torch.tensor([request.token_ids[:-1]]), found.top_token_ids
        with torch.inference_mode():
            wanted, other = (each(tokens).logits[0, -1].float().log_softmax(-1)[ids] for each in (model, narrow))
        ours.append((wanted - torch.tensor(found.top_logprobs)).abs().max().item())
        theirs.append((wanted - other).abs().max().item())
    assert statistics.median(ours) < 2 * statistics.median(theirs) + 0.02


def test_kv_shipped_to_another_engine_continues_the_same(family):
    """A transfer by hand: blocks of a prefill-only request are copied to blocks that another engine reserved."""
    prefill = engine_of(family.directory)
    decode = engine_of(family.directory, kv_memory="1MiB", max_num_batched_tokens=512)
    assert prefill.layout == decode.layout
    [prompt] = prompts(45)
    decode.add(generation(prompt[:19], 1, max_tokens=2))  # two of the blocks are there already
    run(decode)
    target = hand_over(prefill, decode, prompt, MAX_TOKENS)
    assert target.num_present_blocks == 2
    assert_same(family.model, target, run(decode)["r0"])
    assert len(outputs(target)) == MAX_TOKENS


def test_a_shipped_request_is_preempted_and_recomputed(family):
    prefill = engine_of(family.directory)
    decode = engine_of(family.directory, kv_memory=str(16 * prefill.layout.block_bytes))
    texts = prompts(38, 44)
    older = decode.add(generation(texts[0], 1, max_tokens=40))
    decode.step()
    target = hand_over(prefill, decode, texts[1], 40)
    run(decode)
    assert target.num_preemptions > 0
    for request in (older, target):
        assert len(outputs(request)) == 40
        assert_same(family.model, request)
