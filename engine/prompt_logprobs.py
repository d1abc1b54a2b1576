"""Log-probabilities of a prompt's own tokens, and of the likeliest ones at their positions.

Logits are computed for a slice of the prompt at a time: a whole long prompt times the vocabulary would take gigabytes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.sampling import largest
from kernels.api import Logits
from kernels.dispatch import log_total

MIN_ROWS, MAX_ROWS = 16, 256
_MAX_LOGITS = 2**24  # per slice: 64 MiB in fp32


class PromptLogprobs(NamedTuple):
    """Log-probabilities of N prompt tokens in the model's own distribution, without temperature or penalties."""

    position: int  # of the first of them in the prompt
    logprobs: NDArray[np.float32]  # [N]
    ranks: NDArray[np.int64]  # [N]; 1 is the likeliest
    top_token_ids: NDArray[np.int64]  # [N, K], the likeliest first
    top_logprobs: NDArray[np.float32]  # [N, K]


def compute(
    hidden: Tensor, token_ids: Sequence[int], position: int, num_top: int, to_logits: Callable[[Tensor], Logits]
) -> PromptLogprobs | None:
    """Score one or more tokens, the first of them at `position` in the prompt; None if a logit is not finite.

    hidden: [N, H], the hidden states from which each of them is predicted; `to_logits` maps [n, H] to logits.
    """
    wanted = torch.tensor(token_ids, dtype=torch.int64, device=hidden.device).unsqueeze(1)
    parts: list[list[NDArray[Any]]] = []
    start, size = 0, MIN_ROWS
    while start < len(token_ids):
        logits, is_finite, _ = to_logits(hidden[start : start + size])
        if not bool(is_finite.all()):
            return None
        parts.append([column.cpu().numpy() for column in _reduce(logits, wanted[start : start + size], num_top)])
        start += logits.shape[0]
        size = max(MIN_ROWS, min(MAX_ROWS, _MAX_LOGITS // logits.shape[1]))
    logprobs, ranks, top_ids, top = (np.concatenate(column) for column in zip(*parts, strict=True))
    return PromptLogprobs(position, logprobs, ranks, top_ids, top)


def _reduce(logits: Tensor, wanted: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprobs [n], ranks [n], top ids [n, K], top logprobs [n, K]) of logits [n, V] and token ids [n, 1]."""
    total = log_total(logits).unsqueeze(1)
    values = logits.gather(1, wanted)
    ranks = (logits > values).sum(-1) + 1
    if num_top:
        top, places = largest.top(logits, min(num_top, logits.shape[1]))
        top, order = top.sort(dim=-1, descending=True)
        places = places.gather(1, order)
    else:
        top, places = logits[:, :0], wanted[:, :0]
    return (values - total).squeeze(1), ranks, places, top - total
