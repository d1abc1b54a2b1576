"""The output head's results in plain torch."""

import torch
from torch import Tensor


def widened(x: Tensor, softcap: float) -> Tensor:
    """[S, V] in fp32, `softcap * tanh(x / softcap)` unless softcap is 0."""
    x = x.float()
    return softcap * torch.tanh(x / softcap) if softcap else x


def are_finite(values: Tensor) -> Tensor:
    """Whether each row of [S, N] is free of NaN and infinities, [S] bool: these survive a sum."""
    return values.sum(-1, dtype=torch.float32).isfinite()
