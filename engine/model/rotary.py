"""The rotary tables that the kernels read: frequencies of each scaling, and the order of a head's dimensions.

Formulas: RoPE arXiv:2104.09864; linear and dynamic (NTK) scaling as in Hugging Face's transformers; YaRN
arXiv:2309.00071; LongRoPE arXiv:2402.13753; llama3 as in Meta's Llama 3.1. The rotation is a kernel, which always
rotates dimension i of a head with dimension i + D/2; `rotary_order` reorders a head's dimensions for that.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from engine.model.config import ModelConfig
from engine.model.rope import RopeConfig, mscale


def rotary_order(head_dim: int, rotary_dim: int, *, interleaved: bool) -> Tensor:
    """The order of a checkpoint head's dimensions, [head_dim] int64, in which i is rotated with i + head_dim/2.

    In the checkpoint the first `rotary_dim` dimensions are rotated: i with i + rotary_dim/2, or with its neighbour if
    `interleaved`. Scores do not change if queries and keys are reordered alike.
    """
    turning = torch.arange(rotary_dim)
    first, second = (turning[0::2], turning[1::2]) if interleaved else turning.chunk(2)
    still_first, still_second = torch.arange(rotary_dim, head_dim).tensor_split(2)
    return torch.cat((first, still_first, second, still_second))


def layer_tables(model: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, ...]:
    """Make the table [rows, head_dim] of each layer; layers with the same rotation share one.

    Row p is position p. Rows for stretched requests, if there can be any, follow from `model.stretches_after` on.
    """

    def table(rope: RopeConfig) -> Tensor:
        of_rope = partial(cos_sin_table, rope, model.rotary_dim, model.head_dim)
        num_plain = model.stretches_after
        if not 0 < num_plain < length:
            return of_rope(length).to(device)
        return torch.cat((of_rope(num_plain), of_rope(length, stretched=True))).to(device)

    whole = table(model.rope)
    local = whole if model.local_rope == model.rope else table(model.local_rope)
    return tuple(local if window else whole for window in model.windows)


def cos_sin_table(rope: RopeConfig, rotary_dim: int, head_dim: int, length: int, *, stretched: bool = False) -> Tensor:
    """Make a table [length, head_dim] fp32: cosines, then sines; a dimension that is not rotated has 1 and 0.

    LongRoPE has other factors for `stretched` requests. Dynamic scaling would use another base for each length; but a
    cached key cannot be rotated again, so all stretched requests use the base of the longest (`length`).
    """
    frequencies, attention_factor = _frequencies(rope, rotary_dim, length if stretched else 0)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    still = (head_dim - rotary_dim) // 2
    cos = functional.pad(angles.cos() * attention_factor, (0, still), value=1.0)
    sin = functional.pad(angles.sin() * attention_factor, (0, still))
    return torch.cat((cos, sin), dim=-1)


def _frequencies(rope: RopeConfig, rotary_dim: int, stretched_to: int) -> tuple[Tensor, float]:
    """Return radians per position [rotary_dim / 2], and a factor on cosines and sines. `stretched_to` 0: it is not."""
    plain = _plain(rope.theta, rotary_dim)
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "dynamic":
        return _plain(_dynamic_theta(rope, rotary_dim, stretched_to), rotary_dim), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, rotary_dim), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, rotary_dim), _yarn_attention_factor(rope)
    if rope.kind == "longrope":
        name = "long_factor" if stretched_to else "short_factor"
        return plain / torch.tensor(rope.values[name], dtype=torch.float32), _longrope_attention_factor(rope)
    return plain, 1.0


def _plain(theta: float, rotary_dim: int) -> Tensor:
    """Radians per position, falling from 1 to almost 1 / theta."""
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _dynamic_theta(rope: RopeConfig, rotary_dim: int, length: int) -> float:
    factor = rope.factor
    stretch = max(length, rope.max_position_embeddings) / rope.max_position_embeddings
    return float(rope.theta * (factor * stretch - (factor - 1)) ** (rotary_dim / (rotary_dim - 2)))


def _llama3(rope: RopeConfig, rotary_dim: int) -> Tensor:
    """Divide the frequencies of long wavelengths by `factor`, keep those of short ones, and blend in between."""
    plain = _plain(rope.theta, rotary_dim)
    low, high = float(rope.values["low_freq_factor"]), float(rope.values["high_freq_factor"])
    turns = rope.original_length * plain / (2 * math.pi)  # of each frequency over the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(rope: RopeConfig, rotary_dim: int) -> Tensor:
    """Keep frequencies with many turns in the original context, divide those with few by `factor`; a ramp between."""
    plain = _plain(rope.theta, rotary_dim)

    def dimension(turns: float) -> float:
        return rotary_dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(rope.values.get("beta_fast") or 32)
    high = dimension(rope.values.get("beta_slow") or 1)
    if rope.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = (torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    divided = ramp.clamp(0, 1)
    return divided * plain / rope.factor + (1 - divided) * plain


def _yarn_attention_factor(rope: RopeConfig) -> float:
    factor, given = rope.factor, rope.values.get("attention_factor")
    if given is not None:
        return float(given)
    own, all_dim = rope.values.get("mscale"), rope.values.get("mscale_all_dim")
    return mscale(factor, own) / mscale(factor, all_dim) if own and all_dim else mscale(factor, 1.0)


def _longrope_attention_factor(rope: RopeConfig) -> float:
    given = rope.values.get("attention_factor")
    if given is not None:
        return float(given)
    factor = rope.values.get("factor") or rope.max_position_embeddings / rope.original_length
    return math.sqrt(1 + math.log(factor) / math.log(rope.original_length)) if factor > 1 else 1.0
