"""`--deterministic` on a GPU, in bf16: the same bits alone or in a batch, with the prompt whole or in chunks, with CUDA
graphs or without, and where another engine computed the prompt.
"""

import itertools
import json
import random
from collections.abc import Sequence

import pytest
import torch
from safetensors.torch import save_file

from engine import random_checkpoint
from engine.model.checkpoint import FLOATS
from engine.model.config import ModelConfig
from engine.model.weights import WeightLoader
from engine.random_checkpoint import TINY, AnyTensor
from kernels.api import Attention, AttentionMeta
from kernels.quantize import rounded
from kernels.reference import ReferenceKernels
from tests.recorded_logits import MAX_TOKENS, Recording, generation, run_apart

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
BF16 = torch.bfloat16
LLAMA = TINY | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
EXPERTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 256, "norm_topk_prob": True}
MODELS = {
    "llama": LLAMA,
    "gemma2": LLAMA  # windows and soft caps
    | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 128, "sliding_window": 100}
    | {"query_pre_attn_scalar": 128, "hidden_activation": "gelu_pytorch_tanh"},
    "qwen3-moe": LLAMA
    | EXPERTS
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 128, "num_experts": 16},
    "deepseek-v3": LLAMA
    | EXPERTS
    | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_key_value_heads": 16}
    | {"kv_lora_rank": 512, "q_lora_rank": 384, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    | {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1},
}

CASES = [*((name, "none") for name in MODELS), ("llama", "int4"), ("qwen3-moe", "int8")]


class MadeTensors(AnyTensor):
    """Creates every tensor that is asked for from a seed, and keeps it. Fused tensors are stored fused."""

    def __init__(self) -> None:
        self.made: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(5)

    def tensor(
        self, name: str, shape: Sequence[int], types: Sequence[str] = FLOATS, *, reshaped: bool = False
    ) -> torch.Tensor:
        """Norms near 1; linears scaled so that activations keep their magnitude."""
        values = torch.randn(tuple(shape), generator=self._generator)
        values = 1 + values / 10 if len(shape) == 1 else values / shape[-1] ** 0.5
        self.made[name] = values.to(BF16)
        return self.made[name]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request, tmp_path_factory):
    """A checkpoint of that family, and how to quantise it."""
    name, quantization = request.param
    config = MODELS[name]
    directory = random_checkpoint.write(tmp_path_factory.mktemp(name), TINY)
    (directory / "config.json").write_text(json.dumps(config))
    made = MadeTensors()
    loader = WeightLoader(ModelConfig.load(directory), made, ReferenceKernels(), BF16, torch.device("cpu"))
    loader.load(lambda fraction: None)
    save_file(made.made, directory / "model.safetensors", metadata={"format": "pt"})
    return directory, quantization


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(7)
    return [[draw.randrange(8192) for _ in range(length)] for length in (600, 3, 1, 41, 130, 90, 64, 257, 8)]


def recording(model, **flags):
    directory, quantization = model
    defaults = {"device": DEVICE, "deterministic": True, "kv_memory": "64MiB", "block_size": 16, "max_num_seqs": 16}
    return Recording(directory, "bfloat16", quantization, **(defaults | flags))


def run_alone(engine, text, key=0):
    engine.engine.add(generation(text, key))
    rows = engine.run()
    assert rows.total() == MAX_TOKENS
    return rows


@pytest.fixture(scope="module")
def together(model, texts):
    """The rows of all texts in one batch."""
    crowd = recording(model)
    for key, text in enumerate(texts):
        crowd.engine.add(generation(text, key))
    rows = crowd.run()
    assert rows.total() == len(texts) * MAX_TOKENS
    return rows


@pytest.mark.parametrize("chunk", [16, 64, 512])
def test_logits_depend_neither_on_the_batch_nor_on_chunks(model, texts, together, chunk):
    alone = recording(model, max_num_batched_tokens=chunk)
    for key in (0, 1, 2, 4, 7):
        assert run_alone(alone, texts[key], key) <= together


def test_logits_do_not_depend_on_graphs_and_their_padding(model, texts, together):
    few = recording(model, cuda_graphs=False, max_num_seqs=3)
    for key, text in enumerate(texts):
        few.engine.add(generation(text, key))
    assert few.run() == together


def test_logits_do_not_depend_on_where_the_prompt_is_computed(model, texts):
    wanted = run_alone(recording(model), texts[0])
    first, second = recording(model, max_num_batched_tokens=64), recording(model)
    assert run_apart(first, second, texts[0]) == wanted


def test_logits_do_not_depend_on_prefill_or_decode(model, texts):
    """As after a node has died: the tokens drawn before are part of the next prompt."""
    engine = recording(model)
    request = engine.engine.add(generation(texts[0]))
    wanted = engine.run()
    resumed = run_alone(engine, request.token_ids[: len(texts[0]) + 2], key=1)
    assert (resumed & wanted).total() == MAX_TOKENS - 2


@pytest.fixture(scope="module")
def kernels():
    from kernels.triton import TritonKernels

    torch.manual_seed(0)
    return TritonKernels(deterministic=True)


def randn(*shape):
    return torch.randn(*shape, device=DEVICE).to(BF16)


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "bias", "bits"),
    [(4096, 4096, False, 16), (6144, 4096, True, 16), (28672, 4096, False, 16), (4096, 14336, False, 16),
     (1000, 520, True, 16), (4096, 4096, False, 8), (1000, 544, True, 8), (4096, 4096, False, 4), (1000, 544, True, 4)],
)  # fmt: skip
def test_linears(kernels, num_outputs, num_inputs, bias, bits):
    """The numbers of rows lead to tiles of all sizes."""
    weight, x = randn(num_outputs, num_inputs) / num_inputs**0.5, randn(2500, num_inputs)
    added = randn(num_outputs) if bias else None
    linear = kernels.pack_linear(weight, added, bits)
    together = linear(x)
    expected = torch.nn.functional.linear(x, rounded(weight, bits), added)
    torch.testing.assert_close(together.float(), expected.float(), atol=2e-2, rtol=2e-2)
    for start, end in [(0, 1), (2499, 2500), (77, 85), (3, 67), (3, 68), (0, 128), (100, 300), (1, 2000)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


def test_linears_of_heads(kernels):
    weight, x = randn(128, 576, 192) / 192**0.5, randn(300, 128 * 192)
    linear = kernels.pack_heads(weight)
    together = linear(x)
    for start, end in [(0, 1), (3, 67), (90, 290)]:
        assert torch.equal(linear(x[start:end]), together[start:end])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("num_experts", [8, 128])
def test_experts(kernels, num_experts, bits):
    gate_up, down = randn(num_experts, 1536, 2048) / 45, randn(num_experts, 2048, 768) / 28
    experts = kernels.pack_experts(gate_up, down, "silu", bits=bits)
    x, weights = randn(2000, 2048), torch.rand(2000, 4, device=DEVICE)
    expert_ids = torch.rand(2000, num_experts, device=DEVICE).topk(4).indices
    together = experts(x, expert_ids, weights)
    for start, end in [(0, 1), (1999, 2000), (3, 67), (100, 1900)]:
        rows = slice(start, end)
        assert torch.equal(experts(x[rows], expert_ids[rows], weights[rows]), together[rows])


@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "planes", "window", "softcap", "sinks"),
    [
        (8, 4, 128, 2, 0, 0.0, False),
        (8, 4, 128, 2, 1000, 50.0, False),
        (8, 8, 64, 2, 300, 0.0, True),
        (8, 2, 256, 2, 300, 50.0, False),
        (4, 4, 80, 2, 0, 0.0, False),
        (2, 71, 64, 2, 0, 0.0, True),
        (1, 16, 576, 1, 0, 0.0, False),
        (1, 128, 576, 1, 0, 0.0, False),
    ],
)
def test_attention(kernels, num_kv_heads, group, head_dim, planes, window, softcap, sinks):
    """The last queries of one sequence are computed all at once, in a larger batch, in chunks, and one by one."""
    seq_len, num_queries = 2203, 203
    num_heads, num_blocks = num_kv_heads * group, -(-seq_len // 16)
    kv, q = randn(num_blocks, planes, num_kv_heads, 16, head_dim), randn(num_queries + 40, num_heads, head_dim)
    tables = torch.randperm(num_blocks, device=DEVICE).int().repeat(41, 1)
    scores = torch.randn(num_heads, device=DEVICE) if sinks else None
    attention = Attention(head_dim**-0.5, window, softcap, scores)

    def run(first, *seqs):
        """Rows from `first` on, of sequences (tokens, queries)."""
        ends = list(itertools.accumulate((queries for _, queries in seqs), initial=0))
        meta = AttentionMeta(
            query_start=torch.tensor(ends, device=DEVICE).int(),
            seq_lens=torch.tensor([tokens for tokens, _ in seqs], device=DEVICE).int(),
            block_tables=tables[: len(seqs)],
            max_query_len=max(queries for _, queries in seqs),
            max_seq_len=seq_len,
        )
        return kernels.paged_attention(q[first : first + ends[-1]], kv, meta, attention)

    whole = run(0, (seq_len, num_queries))
    assert whole.isfinite().all()
    assert torch.equal(run(0, (seq_len, num_queries), *[(1500, 1)] * 40)[:-40], whole)
    computed = seq_len - num_queries
    for start, end in [(0, 16), (16, 80), (80, 203), (7, 9), *((row, row + 1) for row in range(0, 203, 9))]:
        assert torch.equal(run(start, (computed + end, end - start)), whole[start:end])
