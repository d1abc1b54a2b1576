"""The engine against Hugging Face's models: same greedy tokens, whatever way the scheduler takes to them.

What the engine has drawn is fed to transformers' model as a whole: it must find every token the likeliest, given those
before it, and the same log-probabilities.
"""

import dataclasses
import random
import statistics
import warnings

import msgspec
import pytest
import torch

from baton.request import Generation, SamplingParams
from baton.settings import EngineFlags
from engine.engine import Engine
from engine.request import Request
from engine.sampling.sampler import Logprobs
from kernels.api import Kernels
from kernels.dispatch import load
from kernels.reference import ReferenceKernels

VOCAB = 199
MAX_TOKENS = 12
CLOSE = 1e-4  # of log-probabilities; what is found is 3e-5 at most


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def engine_of(directory, kernels: Kernels | None = None, **flags) -> Engine:
    defaults = {"kv_memory": "2MiB", "max_num_batched_tokens": 24, "block_size": 8, "num_threads": 1, "device": "cpu"}
    flags = EngineFlags(model=str(directory), **(defaults | flags))
    return Engine.load(directory, flags, kernels=kernels)


def ahead(engine: Engine) -> Engine:
    """The same with steps that run ahead, as on a GPU."""
    config = dataclasses.replace(engine.config, runs_ahead=True)
    return Engine(config, engine.model_config, engine.steps.readout.decoder, engine._cache, grammars=engine._grammars)


def generation(prompt: list[int], key: int = 0, **sampling) -> Generation:
    defaults = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True, "num_logprobs": 5}
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**(defaults | sampling)),
        router_id="router",
    )


def run(engine: Engine) -> dict[str, list[Logprobs]]:
    """Step until nothing is left to do; log-probabilities by request."""
    logprobs: dict[str, list[Logprobs]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            if output.logprobs:
                logprobs.setdefault(output.request.request_id, []).append(output.logprobs)
        engine.check()
    return logprobs


def outputs(request: Request) -> list[int]:
    return request.token_ids[request.num_prompt_tokens :]


def assert_same(model, request: Request, logprobs: list[Logprobs] | None = None, close: float = CLOSE) -> None:
    """The output is transformers' greedy one; `logprobs` are of its last tokens."""
    drawn = outputs(request)
    with torch.inference_mode():
        wanted = model(torch.tensor([request.token_ids])).logits[0].float().log_softmax(-1)
    wanted = wanted[request.num_prompt_tokens - 1 : -1]  # [drawn, V]
    assert drawn == wanted.argmax(-1).tolist()
    for row, found in zip(wanted[len(drawn) - len(logprobs or []) :], logprobs or [], strict=True):
        values, ids = row.topk(5)
        assert found.top_token_ids == ids.tolist()
        assert torch.allclose(torch.tensor(found.top_logprobs), values, rtol=0, atol=close)


def assert_same_step_by_step(model, request: Request, logprobs: list[Logprobs]) -> None:
    """The same, each step as transformers takes it: over no more tokens than there are then."""
    first = request.num_tokens - len(logprobs)
    for end, found in enumerate(logprobs, first):
        with torch.inference_mode():
            row = model(torch.tensor([request.token_ids[:end]])).logits[0, -1].log_softmax(-1)
        values, ids = row.topk(5)
        assert request.token_ids[end] == ids[0]
        assert found.top_token_ids == ids.tolist()
        assert torch.allclose(torch.tensor(found.top_logprobs), values, rtol=0, atol=CLOSE)


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


def test_same_tokens_where_steps_run_ahead(family):
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
    engine = Engine.load(tmp_path, flags, fractions.append)
    request = engine.add(generation(*prompts(20)))
    run(engine)
    assert_same(model, request)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt-oss", "deepseek-v3-halves"])
def test_logits_in_bfloat16_are_close(name, tmp_path, save_family):
    """About as close to the fp32 model as transformers is in bfloat16.

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


def test_dynamic_rope_beyond_the_trained_length(tmp_path, save_family):
    """One base serves all longer requests: that of max_model_len, at which transformers comes to the same."""
    model = save_family(tmp_path, "llama-dynamic")
    engine = engine_of(tmp_path, max_model_len=200)
    [prompt, short] = prompts(199, 100)
    request = engine.add(generation(prompt, max_tokens=1))
    plain = engine.add(generation(short, 1))
    logprobs = run(engine)
    assert_same(model, plain, logprobs["r1"])
    inputs = torch.tensor([[*prompt, 0]])  # 200 positions: the base that the engine uses throughout
    with torch.inference_mode():
        wanted = model(inputs).logits[0, -2].argmax().item()
    assert outputs(request) == [wanted]


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_longrope_stretches_each_request_that_grows_long(tmp_path, save_family, runs_ahead):
    """Its factors follow from a request's own length, now: 96 tokens are short, and one more computes all anew."""
    model = save_family(tmp_path, "phi3-longrope")
    engine = engine_of(tmp_path)
    engine = ahead(engine) if runs_ahead else engine
    [text] = prompts(112)
    lengths = (40, 90, 96, 97, 112)
    requests = [engine.add(generation(text[:length], key)) for key, length in enumerate(lengths)]
    logprobs = run(engine)
    assert [request.num_preemptions for request in requests] == [0, 1, 1, 0, 0]
    for request in requests:
        assert_same_step_by_step(model, request, logprobs[request.request_id])
    again = engine.add(generation(text, 9))  # finds the stretched blocks, and not the others
    assert run(engine)["r9"] == logprobs["r4"]
    assert again.num_cached_tokens == 104


@pytest.mark.parametrize("length", [50, 92, 96, 97])
def test_longrope_of_shipped_requests(tmp_path, save_family, length):
    """Also where the first token, drawn elsewhere, is one too many for the KV that came."""
    model = save_family(tmp_path, "phi3-longrope")
    prefill, decode = engine_of(tmp_path), engine_of(tmp_path)
    [text] = prompts(length)
    decode.add(generation(text[:40], 1, max_tokens=2))
    run(decode)
    target = hand_over(prefill, decode, text, MAX_TOKENS)
    assert target.num_present_blocks == (5 if length <= 96 else 0)
    assert_same_step_by_step(model, target, run(decode)["r0"])
    resumed = msgspec.structs.replace(generation(text, 2), token_ids=target.token_ids[:-3])
    again = engine_of(tmp_path).add(resumed)
    assert again.is_stretched == (length + MAX_TOKENS - 3 > 96)


def test_kv_shipped_to_another_engine_continues_the_same(family):
    """What a transfer does, by hand: blocks of a prefill-only request copied to where another engine reserved."""
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


def test_shipped_request_is_preempted_and_computed_anew(family):
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


def hand_over(prefill: Engine, decode: Engine, prompt: list[int], max_tokens: int) -> Request:
    """Prefill on one engine, started on the other."""
    source = prefill.add(generation(prompt, max_tokens=max_tokens), prefill_only=True)
    run(prefill)
    target = decode.reserve(generation(prompt, max_tokens=max_tokens))
    assert target is not None
    ship(prefill, source, decode, target)
    prefill.release(source)
    prefill.check()
    decode.start(target, outputs(source)[0])
    return target


def ship(source: Engine, sent: Request, target: Engine, received: Request) -> None:
    layout, size = source.layout, source.layout.block_group_bytes
    for group in range(layout.num_layer_groups):
        for index in range(received.num_present_blocks, len(received.block_ids)):
            read = layout.offset(source.num_blocks, group, sent.block_ids[index])
            write = layout.offset(target.num_blocks, group, received.block_ids[index])
            target.pool[write : write + size] = source.pool[read : read + size]
