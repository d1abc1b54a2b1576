"""Rotary position embedding: the frequencies of each scaling, and the table that the kernels read.

Formulas: RoPE arXiv:2104.09864; linear and dynamic (NTK) scaling as Hugging Face has them; YaRN arXiv:2309.00071;
llama3 as in Meta's Llama 3.1. The rotation itself is a kernel.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baton.errors import CheckpointError

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Base and scaling. `values` holds the numbers that belong to `kind`."""

    kind: str = "default"
    theta: float = 10000.0
    max_position_embeddings: int = 2048
    values: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, path: Path, raw: dict[str, Any]) -> "RopeConfig":
        """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        if any(isinstance(value, dict) for value in scaling.values()):
            raise CheckpointError(f"{path}: rope_parameters that differ between layers are not served")
        kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
        if kind not in _REQUIRED:
            raise CheckpointError(f"{path}: RoPE scaling {kind!r} is not known; known are {', '.join(_REQUIRED)}")
        missing = [name for name in _REQUIRED[kind] if not isinstance(scaling.get(name), int | float)]
        if missing:
            raise CheckpointError(f"{path}: RoPE scaling {kind!r} needs {', '.join(missing)}")
        if (scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
            raise CheckpointError(f"{path}: partial_rotary_factor other than 1 is not served")
        theta = scaling.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
        longest = raw.get("max_position_embeddings") or 2048
        if "original_max_position_embeddings" in raw:
            scaling["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
        return cls(kind=kind, theta=float(theta), max_position_embeddings=int(longest), values=scaling)

    @property
    def factor(self) -> float:
        """By how much the context is stretched."""
        return float(self.values.get("factor", 1.0))

    @property
    def original_length(self) -> int:
        """Positions that the model was first trained on."""
        return int(self.values.get("original_max_position_embeddings") or self.max_position_embeddings)

    @property
    def max_length(self) -> int:
        """Longest context that may be asked for."""
        if self.kind == "yarn":
            return max(self.max_position_embeddings, int(self.original_length * self.factor))
        if self.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * self.factor)
        return self.max_position_embeddings

    @property
    def default_length(self) -> int:
        """Context where none is asked for. With dynamic scaling a longer one would change all numbers."""
        return self.max_position_embeddings if self.kind == "dynamic" else self.max_length


def cos_sin_table(rope: RopeConfig, head_dim: int, length: int) -> Tensor:
    """[length, head_dim] fp32: cosines of each frequency, then sines.

    Dynamic scaling grows the base with the sequence. A cached key cannot be rotated again, so one base holds for all
    requests: that of the longest (`length`), which is the unscaled one up to max_position_embeddings.
    """
    frequencies, attention_factor = _frequencies(rope, head_dim, length)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor


def _frequencies(rope: RopeConfig, head_dim: int, length: int) -> tuple[Tensor, float]:
    """[head_dim / 2] radians per position, and the factor on cosines and sines."""
    if rope.kind == "linear":
        return _plain(rope.theta, head_dim) / rope.factor, 1.0
    if rope.kind == "dynamic":
        return _plain(_dynamic_theta(rope, head_dim, length), head_dim), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, head_dim), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, head_dim), _yarn_attention_factor(rope)
    return _plain(rope.theta, head_dim), 1.0


def _plain(theta: float, head_dim: int) -> Tensor:
    """Radians per position, falling from 1 to nearly 1 / theta."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _dynamic_theta(rope: RopeConfig, head_dim: int, length: int) -> float:
    factor = rope.factor
    stretch = max(length, rope.max_position_embeddings) / rope.max_position_embeddings
    return float(rope.theta * (factor * stretch - (factor - 1)) ** (head_dim / (head_dim - 2)))


def _llama3(rope: RopeConfig, head_dim: int) -> Tensor:
    """Long wavelengths divided by `factor`, short ones kept, those between blended."""
    plain = _plain(rope.theta, head_dim)
    low, high = float(rope.values["low_freq_factor"]), float(rope.values["high_freq_factor"])
    turns = rope.original_length * plain / (2 * math.pi)  # of each frequency over the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Frequencies that turn often are kept, those that turn rarely divided by `factor`, with a ramp between."""
    plain = _plain(rope.theta, head_dim)

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(rope.values.get("beta_fast") or 32)
    high = dimension(rope.values.get("beta_slow") or 1)
    if rope.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    divided = ramp.clamp(0, 1)
    return divided * plain / rope.factor + (1 - divided) * plain


def _yarn_attention_factor(rope: RopeConfig) -> float:
    factor, given = rope.factor, rope.values.get("attention_factor")
    if given is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all_dim = rope.values.get("mscale"), rope.values.get("mscale_all_dim")
    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
