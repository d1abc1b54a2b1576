"""The engine against Hugging Face's models: same greedy tokens, whatever way the scheduler takes to them."""

import random
import warnings

import pytest
import torch
import transformers

from baton.request import Generation, SamplingParams
from baton.settings import EngineFlags
from engine.engine import Engine
from engine.request import Request
from kernels.api import Kernels
from kernels.dispatch import load
from kernels.reference import ReferenceKernels

VOCAB = 199
MAX_TOKENS = 12
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ORIGINAL = {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ORIGINAL
MODELS = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-bias-untied": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 10000.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4} | ORIGINAL}),
    "mistral": ("Mistral", {"sliding_window": 11, "head_dim": 16}),
    "mistral-full": ("Mistral", {"sliding_window": None, "num_attention_heads": 4, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def save(directory, name: str, dtype=torch.float32, **options):
    """A random checkpoint as transformers writes it, with biases and norms that matter."""
    family, changes = MODELS[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**(SMALL | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() == 1 else 2 / parameter.shape[1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    model = model.to(dtype).eval()
    model.save_pretrained(directory, **options)
    return model


def expected(model, prompt: list[int], num_tokens: int = MAX_TOKENS) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
        )
    return output[0, len(prompt) :].tolist()


def engine_of(directory, kernels: Kernels | None = None, **flags) -> Engine:
    defaults = {"kv_memory": "2MiB", "max_num_batched_tokens": 24, "block_size": 8, "num_threads": 1, "device": "cpu"}
    flags = EngineFlags(model=str(directory), **(defaults | flags))
    return Engine.load(directory, flags, kernels=kernels or ReferenceKernels())


def generation(prompt: list[int], key: int = 0, **sampling) -> Generation:
    defaults = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**(defaults | sampling)),
        router_id="router",
    )


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.check()


def outputs(request: Request) -> list[int]:
    return request.token_ids[request.num_prompt_tokens :]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(name, transformers' model, its directory)."""
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, save(directory, request.param), directory


@pytest.fixture(params=["reference", "compiled"])
def kernels(request) -> Kernels:
    if request.param == "reference":
        return ReferenceKernels()
    with warnings.catch_warnings(action="ignore"):
        kernels = load(torch.device("cpu"), torch.float32)
    if kernels.name == "reference":
        pytest.skip("the compiled kernels do not run on this machine")
    return kernels


def test_same_tokens_batched_with_chunks(pair, kernels):
    _, model, directory = pair
    engine = engine_of(directory, kernels)
    texts = prompts(3, 61, 8, 24, 40)
    requests = [engine.add(generation(text, key)) for key, text in enumerate(texts)]
    run(engine)
    assert [outputs(request) for request in requests] == [expected(model, text) for text in texts]


def test_same_tokens_alone_preempted_and_from_the_cache(pair):
    name, model, directory = pair
    block_bytes = engine_of(directory).layout.block_bytes
    engine = engine_of(directory, kv_memory=str(16 * block_bytes), max_num_batched_tokens=64)
    texts = prompts(38, 37, 30)
    wanted = [expected(model, text, 40) for text in texts]
    requests = [engine.add(generation(text, key, max_tokens=40)) for key, text in enumerate(texts)]
    run(engine)
    assert engine.num_preemptions > 0, name
    assert [outputs(request) for request in requests] == wanted
    for num_cached_tokens in (0, 32):  # evicted by the others at first, then all but the block of the last token
        again = engine.add(generation(texts[0], 9, max_tokens=40))
        run(engine)
        assert outputs(again) == wanted[0]
        assert again.num_cached_tokens >= num_cached_tokens


@pytest.mark.parametrize("name", ["llama", "llama-bias-untied"])
def test_sharded_checkpoint(name, tmp_path):
    model = save(tmp_path, name, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    fractions: list[float] = []
    flags = EngineFlags(model=str(tmp_path), kv_memory="1MiB", num_threads=1, device="cpu")
    engine = Engine.load(tmp_path, flags, fractions.append, ReferenceKernels())
    [prompt] = prompts(20)
    request = engine.add(generation(prompt))
    run(engine)
    assert outputs(request) == expected(model, prompt)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_logits_in_bfloat16_are_close(tmp_path):
    """Greedy tokens may differ where two are nearly equal, so it is the log-probabilities that are compared."""
    model = save(tmp_path, "qwen3", torch.bfloat16)
    engine = engine_of(tmp_path)
    assert engine.layout.dtype == "bfloat16"
    [prompt] = prompts(50)
    request = engine.add(generation(prompt, num_logprobs=5, max_tokens=1))
    results = []
    while engine.has_work:
        results += engine.step().outputs
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
    [logprobs] = [result.logprobs for result in results if result.logprobs]
    assert outputs(request)[0] in wanted.topk(3).indices.tolist()
    for token_id, logprob in zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True):
        assert abs(wanted[token_id].item() - logprob) < 0.15


def test_dynamic_rope_beyond_the_trained_length(tmp_path):
    """One base serves all lengths: that of max_model_len, at which transformers comes to the same."""
    model = save(tmp_path, "llama-dynamic")
    engine = engine_of(tmp_path, max_model_len=200)
    [prompt] = prompts(199)
    request = engine.add(generation(prompt, max_tokens=1))
    run(engine)
    inputs = torch.tensor([[*prompt, 0]])  # 200 positions: the base that the engine uses throughout
    with torch.inference_mode():
        wanted = model(inputs).logits[0, -2].argmax().item()
    assert outputs(request) == [wanted]


def test_kv_shipped_to_another_engine_continues_the_same(pair):
    """What a transfer does, by hand: blocks of a prefill-only request copied to where another engine reserved."""
    _, model, directory = pair
    prefill, decode = engine_of(directory), engine_of(directory, kv_memory="1MiB", max_num_batched_tokens=512)
    assert prefill.layout == decode.layout
    [prompt] = prompts(45)
    decode.add(generation(prompt[:19], 1, max_tokens=2))  # two of the blocks are there already
    run(decode)
    target = hand_over(prefill, decode, prompt, MAX_TOKENS)
    assert target.num_present_blocks == 2
    run(decode)
    assert outputs(target) == expected(model, prompt)


def test_shipped_request_is_preempted_and_computed_anew(pair):
    _, model, directory = pair
    prefill = engine_of(directory)
    decode = engine_of(directory, kv_memory=str(16 * prefill.layout.block_bytes))
    texts = prompts(38, 44)
    older = decode.add(generation(texts[0], 1, max_tokens=40))
    decode.step()
    target = hand_over(prefill, decode, texts[1], 40)
    run(decode)
    assert target.num_preemptions > 0
    assert [outputs(older), outputs(target)] == [expected(model, text, 40) for text in texts]


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
