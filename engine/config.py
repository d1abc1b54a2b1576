"""What a model is (`ModelConfig`, from its config.json) and how a node runs it (`EngineConfig`).

Reads JSON only; tensors are the business of `engine.checkpoint`, sizes of pools that of `engine.resolve`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import CheckpointError
from baton.kv_layout import DTYPE_BYTES
from baton.model_dir import eos_token_ids, read_json
from engine.families import FAMILIES, Family
from engine.rope import RopeConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder. Everything in which the families differ is a field here, so one decoder serves them all."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]  # of each layer: positions that a token sees, itself included; 0 is all
    dtype: str  # of the checkpoint
    eos_token_ids: frozenset[int]

    @classmethod
    def load(cls, model_dir: str | Path) -> "ModelConfig":
        """Read `config.json` (and `generation_config.json`); CheckpointError names the file and the field."""
        path = Path(model_dir) / "config.json"
        raw = read_json(path)
        architecture, family = _family(path, raw)
        _refuse_unsupported(path, raw)
        fields = _Fields(path, raw)
        num_heads = fields.count("num_attention_heads")
        num_layers = fields.count("num_hidden_layers")
        hidden_size = fields.count("hidden_size")
        attention_bias = bool(raw.get("attention_bias", False))
        config = cls(
            architecture=architecture,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.count("num_key_value_heads", family.num_kv_heads or num_heads),
            head_dim=fields.count("head_dim", family.head_dim or hidden_size // num_heads),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=RopeConfig.from_json(path, raw),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family.qkv_bias or (family.optional_bias and attention_bias),
            o_bias=family.optional_bias and attention_bias,
            mlp_bias=family.mlp_bias and bool(raw.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            windows=family.windows(raw, num_layers),
            dtype=_dtype(path, raw),
            eos_token_ids=eos_token_ids(Path(model_dir)),
        )
        _check_heads(path, config)
        return config


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a node runs its model: made by `engine.resolve` from flags, the model and the machine."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    dtype: str
    device: str
    num_threads: int = 0

    @property
    def max_blocks_per_request(self) -> int:
        """Blocks of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.block_size)


class _Fields:
    """Checked access to the numbers of a config.json."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self._path = path
        self._raw = raw

    def count(self, name: str, default: int | None = None) -> int:
        value = self._raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._path}: {name} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._raw.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"{self._path}: {name} must be a number, not {value!r}")
        return float(value)


def _family(path: Path, raw: dict[str, Any]) -> tuple[str, Family]:
    names = raw.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return name, FAMILIES[name]
    raise CheckpointError(f"{path}: architectures {names} are not known; served are {', '.join(FAMILIES)}")


def _refuse_unsupported(path: Path, raw: dict[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise CheckpointError(f"{path}: quantization_config is set, but quantised checkpoints are not served")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(f"{path}: hidden_act {raw['hidden_act']!r} is not silu")


def _check_heads(path: Path, config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads {config.num_heads} is no multiple of num_key_value_heads "
            f"{config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{path}: head_dim {config.head_dim} is odd")


def _dtype(path: Path, raw: dict[str, Any]) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: dtype {name} is not one of {', '.join(DTYPE_BYTES)}")
    return name
