"""From flags, a model and a machine to an `EngineConfig`: dtype, lengths, and the size of the KV pool."""

import logging
import os
from pathlib import Path

import psutil
import torch

from baton.errors import ConfigError
from baton.kv.layout import DTYPE_BYTES, KVLayout
from baton.process.config import parse_bytes
from baton.process.settings import EngineFlags
from engine.config import WEIGHT_BITS, EngineConfig
from engine.kv_cache import layers_per_group
from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig
from engine.model.fingerprint import fingerprint
from kernels.quantize import bytes_per_weight

_CPU_SHARE, _CPU_MAX_BYTES = 0.25, 2 * 2**30
_GPU_SHARE = 0.90
_GPU_ACTIVATION_BYTES_PER_TOKEN = 16  # times the widest activation of a layer

_log = logging.getLogger(__name__)


def resolve(flags: EngineFlags, model_dir: str | Path, model: ModelConfig) -> EngineConfig:
    """Fill in what the flags leave open from the model and the machine. ConfigError names the flag to change."""
    device = _device(flags.device)
    dtype = model.dtype if flags.dtype == "auto" else flags.dtype
    block_bytes = layout(model, flags.block_size, dtype, "").block_bytes
    max_model_len = _max_model_len(flags, model)
    num_blocks = _kv_bytes(flags, model, model_dir, device, dtype) // block_bytes
    num_needed = -(-max_model_len // flags.block_size)
    if num_blocks < num_needed:
        max_model_len = _shortened(flags, max_model_len, num_blocks, block_bytes)
    if flags.kv_memory == "auto":  # more blocks than all requests take at full length would never be used
        num_blocks = min(num_blocks, flags.max_num_seqs * num_needed)
    return EngineConfig(
        max_model_len=max_model_len,
        max_num_seqs=min(flags.max_num_seqs, flags.max_num_batched_tokens),  # else decoding could not run in one step
        max_num_batched_tokens=flags.max_num_batched_tokens,
        block_size=flags.block_size,
        num_blocks=num_blocks,
        dtype=dtype,
        device=device,
        num_threads=flags.num_threads or len(os.sched_getaffinity(0)),
        quantization=flags.quantization,
        stretches_after=model.stretches_after,
        runs_ahead=device != "cpu",  # on a CPU a launch returns when the step is complete
    )


def layout(model: ModelConfig, block_size: int, dtype: str, model_fingerprint: str) -> KVLayout:
    """The layout of this model's KV in a pool."""
    return KVLayout(
        num_layers=model.num_layers,
        layers_per_group=layers_per_group(model.num_layers),
        block_size=block_size,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        num_planes=model.num_planes,
        dtype=dtype,
        model_fingerprint=model_fingerprint,
    )


def kv_fingerprint(model_dir: str | Path, model: ModelConfig, config: EngineConfig) -> str:
    """A fingerprint of everything that a token's KV depends on, apart from the tokens."""
    extras = [config.dtype]
    if config.quantization != "none":
        extras.append(config.quantization)
    extras += [rope.variant(config.max_model_len) for rope in (model.rope, model.local_rope)]
    return fingerprint(model_dir, Checkpoint(model_dir).files, *extras)


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _max_model_len(flags: EngineFlags, model: ModelConfig) -> int:
    if flags.max_model_len > model.rope.max_length:
        raise ConfigError(
            f"--max-model-len {flags.max_model_len} is more than the {model.rope.max_length} positions of the model"
        )
    return flags.max_model_len or model.rope.default_length


def _shortened(flags: EngineFlags, max_model_len: int, num_blocks: int, block_bytes: int) -> int:
    """Return the length that fits in the pool; raises ConfigError if the flags asked for more."""
    fits = num_blocks * flags.block_size
    needed_mib = -(-(-(-max_model_len // flags.block_size) * block_bytes) // 2**20)
    if flags.max_model_len or not fits:
        shorter = f", or --max-model-len to {fits} or less" if fits else ""
        raise ConfigError(
            f"the KV pool (--kv-memory {flags.kv_memory}) holds {fits} tokens, one request may have {max_model_len}: "
            f"set --kv-memory to {needed_mib}MiB or more{shorter}"
        )
    _log.warning("max_model_len is reduced from %d to %d tokens, which is what the KV pool holds", max_model_len, fits)
    return fits


def _kv_bytes(flags: EngineFlags, model: ModelConfig, model_dir: str | Path, device: str, dtype: str) -> int:
    if flags.kv_memory != "auto":
        return parse_bytes(flags.kv_memory)
    if device == "cpu":
        return min(int(_CPU_SHARE * _available_bytes()), _CPU_MAX_BYTES)
    free, _ = torch.cuda.mem_get_info()
    widest = max(model.intermediate_size, model.hidden_size)
    if model.mixture:
        widest = max(widest, model.mixture.ffn_size * model.mixture.routing.experts_per_token)
    activations = flags.max_num_batched_tokens * widest * _GPU_ACTIVATION_BYTES_PER_TOKEN
    logits = flags.max_num_seqs * model.vocab_size * 12  # in the model's type, in fp32, and one copy
    weights = _weight_bytes(flags, model, model_dir, DTYPE_BYTES[dtype], widest)
    return max(int(_GPU_SHARE * free) - weights - activations - logits, 0)


def _weight_bytes(flags: EngineFlags, model: ModelConfig, model_dir: str | Path, dtype_bytes: int, widest: int) -> int:
    """Bytes of the weights on a GPU. If they are quantised, one layer at a time may be in the model's type as well."""
    num_values = Checkpoint(model_dir).num_values(model.quantized.values_per_word if model.quantized else 1)
    bits = WEIGHT_BITS[flags.quantization]
    if bits == 16:
        return num_values * dtype_bytes
    num_ends = min(num_values, (1 if model.tie_word_embeddings else 2) * model.vocab_size * model.hidden_size)
    num_inputs = min(model.hidden_size, model.mixture.ffn_size if model.mixture else model.intermediate_size)
    layers = int((num_values - num_ends) * bytes_per_weight(bits, num_inputs))
    return num_ends * dtype_bytes + layers + 2 * widest * model.hidden_size * dtype_bytes


def _available_bytes() -> int:
    """Available memory, within the limit of the control group if there is one."""
    available: int = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(available, 0)
