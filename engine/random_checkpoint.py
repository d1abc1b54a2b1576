"""A model directory with random weights that can be served: for tests, benchmarks and trying out a fleet.

Config, weights (single or sharded), a byte-level tokenizer and a chat template are all generated from a seed; nothing
is downloaded. The text that such a model generates is meaningless.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
# The 107M Llama that README and bench/results compare servers on.
LLAMA_107M = TINY | {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


class AnyTensor(Checkpoint):
    """A checkpoint without files that has every tensor it is asked for: subclasses create them in `tensor`."""

    def __init__(self) -> None:
        """Nothing is opened."""

    def __contains__(self, name: str) -> bool:
        return name != "lm_head.weight"  # tied models then use the embedding; others read it without this check

    def num_values(self, values_per_word: int = 1) -> int:
        """Unlimited."""
        return sys.maxsize

    def check_copies(self) -> None:
        """Do nothing: without files there are no copies."""

    def unread(self) -> list[str]:
        """None, since only tensors that are asked for exist."""
        return []


def write(model_dir: str | Path, config: dict[str, Any] | None = None, *, seed: int = 0, num_shards: int = 1) -> Path:
    """Write the directory; `config` is a whole config.json (default TINY) of a Llama, Mistral, Qwen2 or Qwen3."""
    directory = Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    config = TINY if config is None else config
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", {"eos_token_id": config.get("eos_token_id")})
    _write_weights(directory, ModelConfig.load(directory), seed, num_shards)
    _write_tokenizer(directory, config)
    return directory


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_weights(directory: Path, config: ModelConfig, seed: int, num_shards: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config.dtype)
    tensors = {name: _random(shape, generator).to(dtype) for name, shape in _shapes(config)}
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = names[shard::num_shards]
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random values: vectors near 1; matrices scaled so that activations keep their magnitude."""
    values = torch.randn(shape, generator=generator)
    return 1 + values / 10 if len(shape) == 1 else values / shape[1] ** 0.5


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in Hugging Face's naming."""
    hidden = config.hidden_size
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def _layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = [
        ("self_attn.q_proj", queries, hidden, config.qkv_bias),
        ("self_attn.k_proj", keys, hidden, config.qkv_bias),
        ("self_attn.v_proj", keys, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, queries, config.o_bias),
        ("mlp.gate_proj", ffn, hidden, config.mlp_bias),
        ("mlp.up_proj", ffn, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, ffn, config.mlp_bias),
    ]
    for name, num_outputs, num_inputs, has_bias in linears:
        yield f"{name}.weight", (num_outputs, num_inputs)
        if has_bias:
            yield f"{name}.bias", (num_outputs,)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)


def _write_tokenizer(directory: Path, config: dict[str, Any]) -> None:
    """Byte-level BPE: special tokens, all bytes, then merges of existing tokens until the vocabulary is full."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for left, right in _pairs(pieces[len(SPECIAL_TOKENS) :]):
        if len(pieces) >= config["vocab_size"]:
            break
        merges.append((left, right))
        pieces.append(left + right)
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)


def _pairs(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of letters, then of ever longer strings with letters: enough for any vocabulary, and none twice."""
    letters = [piece for piece in alphabet if piece.isalpha() and piece.isascii()]
    lefts = letters
    while True:
        pairs = [(left, right) for left in lefts for right in letters]
        yield from pairs
        lefts = [left + right for left, right in pairs]
