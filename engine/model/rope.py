"""Rotary position embedding as config.json describes it: base, scaling, and context length.

`engine.model.rotary` computes the frequencies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.errors import CheckpointError
from engine.model.fields import Fields

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": (),
}
_POSITIVE = (
    *("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"),
    "original_max_position_embeddings",
)
_NOT_OF_A_KIND = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Base and scaling of a rotary embedding. `values` holds the parameters that belong to `kind`."""

    kind: str = "default"
    theta: float = 10000.0
    partial: float = 1.0  # share of a head that is rotated
    max_position_embeddings: int = 2048
    values: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, path: Path, raw: Mapping[str, Any], longrope_alias: str = "") -> "RopeConfig":
        """Read `rope_parameters`; what is missing there may be at the top level, as before transformers 5."""
        model = Fields(path, raw, {})
        scaling = dict(model.mapping("rope_parameters"))
        if any(isinstance(value, dict) for value in scaling.values()):
            raise CheckpointError(f"{path}: rope_parameters that differ between layers are not served")
        if "original_max_position_embeddings" in raw:
            scaling["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
        fields = Fields(path, scaling, {})
        kind = fields.text("rope_type", fields.text("type", "default"))
        kind = "longrope" if kind in ("su", longrope_alias or "su") else kind  # "su" in the first Phi-3 checkpoints
        if kind not in _REQUIRED:
            raise CheckpointError(f"{path}: RoPE scaling {kind!r} is not known; known are {', '.join(_REQUIRED)}")
        missing = [name for name in _REQUIRED[kind] if scaling.get(name) is None]
        if missing:
            raise CheckpointError(f"{path}: RoPE scaling {kind!r} needs {', '.join(missing)}")
        for name in _POSITIVE:
            fields.positive(name, 1.0)
        for name in ("mscale", "mscale_all_dim"):
            fields.number(name, 1.0)
        theta = fields.positive("rope_theta", model.positive("rope_theta", 10000.0))
        _check_numbers(fields, kind, theta)
        partial = fields.positive("partial_rotary_factor", model.positive("partial_rotary_factor", 1.0))
        return cls(
            kind=kind,
            theta=theta,
            partial=partial,
            max_position_embeddings=model.count("max_position_embeddings", 2048),
            values={name: value for name, value in scaling.items() if name not in _NOT_OF_A_KIND},
        )

    @property
    def factor(self) -> float:
        """The factor by which the context is extended."""
        return float(self.values.get("factor", 1.0))

    @property
    def original_length(self) -> int:
        """The context length that the model was first trained on."""
        return int(self.values.get("original_max_position_embeddings") or self.max_position_embeddings)

    @property
    def max_length(self) -> int:
        """The longest context that may be asked for."""
        if self.kind == "yarn":
            return max(self.max_position_embeddings, int(self.original_length * self.factor))
        if self.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * max(self.factor, 1.0))
        return self.max_position_embeddings

    @property
    def default_length(self) -> int:
        """The context length if none is asked for. Dynamic scaling has no limit, so more has to be asked for."""
        return self.max_position_embeddings if self.kind == "dynamic" else self.max_length

    @property
    def score_factor(self) -> float:
        """The factor on the scores of latent attention, from `mscale_all_dim`, as in DeepSeek-V2."""
        all_dim = self.values.get("mscale_all_dim")
        return mscale(self.factor, all_dim) ** 2 if all_dim and self.kind != "default" else 1.0

    @property
    def stretches_after(self) -> int:
        """Tokens beyond which a request is stretched: all its positions get another rotation. 0: never."""
        if self.kind == "longrope":
            return self.original_length
        return self.max_position_embeddings if self.kind == "dynamic" else 0

    def variant(self, length: int) -> str:
        """What in the frequencies depends on the longest request (`length`); "" if nothing does."""
        return f"rope over {length}" if self.kind == "dynamic" and length > self.stretches_after else ""

    def check(self, path: Path, rotary_dim: int) -> None:
        """Raise CheckpointError unless `rotary_dim` dimensions of a head can be rotated with these parameters."""
        if rotary_dim % 2 or not rotary_dim or self.partial > 1:
            raise CheckpointError(f"{path}: partial_rotary_factor {self.partial} would rotate {rotary_dim} dimensions")
        if self.kind == "dynamic" and rotary_dim == 2:
            raise CheckpointError(f"{path}: RoPE scaling 'dynamic' needs more than 2 rotated dimensions")
        if self.kind == "longrope":
            for name in ("short_factor", "long_factor"):
                factors = self.values.get(name)
                if not isinstance(factors, list) or [_is_positive(f) for f in factors] != [True] * (rotary_dim // 2):
                    raise CheckpointError(
                        f"{path}: RoPE scaling 'longrope' needs {rotary_dim // 2} positive numbers as {name}"
                    )


def _check_numbers(fields: Fields, kind: str, theta: float) -> None:
    """Raise CheckpointError for parameters, each of them positive, that do not give frequencies."""
    original = fields.number("original_max_position_embeddings", 2.0)
    if not (2 if kind == "longrope" else 1) <= original < 2**31:  # longrope divides by its logarithm
        fields.refuse(f"original_max_position_embeddings {original} is too small or too large")
    if kind == "yarn" and theta == 1:
        fields.refuse("rope_theta 1.0 gives no frequencies for RoPE scaling 'yarn'")
    low, high = fields.number("low_freq_factor", 1.0), fields.number("high_freq_factor", 4.0)
    if kind == "llama3" and low > high:
        fields.refuse(f"high_freq_factor {high} is less than low_freq_factor {low}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def mscale(factor: float, weight: float) -> float:
    """YaRN's temperature for a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
