"""The two ends of a model in plain torch: token ids to embeddings, and the output head's results to masked logits."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def embedded(token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
    """[T] int64 -> [T, H]: rows of `table` [V, H], times `scale`."""
    rows = functional.embedding(token_ids, table)
    return rows if scale == 1.0 else rows * scale


def widened(x: Tensor, softcap: float) -> Tensor:
    """[S, V] in fp32, `softcap * tanh(x / softcap)` unless softcap is 0."""
    x = x.float()
    return softcap * torch.tanh(x / softcap) if softcap else x


def masked(logits: Tensor, words: Tensor) -> None:
    """See `kernels.api.Mask`."""
    bits = words.view(torch.uint8).unsqueeze(-1) & _powers(logits.device)
    forbidden = bits.eq(0).view(len(words), -1)[:, : logits.shape[1]]
    logits.masked_fill_(forbidden, float("-inf"))


@cache
def _powers(device: torch.device) -> Tensor:
    return (2 ** torch.arange(8)).to(torch.uint8).to(device)


def are_finite(values: Tensor) -> Tensor:
    """Whether each row of [S, N] is free of NaN and infinities, [S] bool: these survive a sum."""
    return values.sum(-1, dtype=torch.float32).isfinite()
