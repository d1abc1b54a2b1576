"""What changes logits before a token is drawn: penalties, logit_bias, and the ban on stopping before min_tokens.

With c the number of times a token occurs in the output:
    repetition (token in prompt or output):  l / r if l > 0 else l * r
    frequency, presence:                     l - frequency * c - presence * [c > 0]
then logit_bias is added, and stop tokens get -inf while fewer than min_tokens tokens are out.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from baton.request import SamplingParams
from engine.request import Request
from engine.token_counts import TokenCounts


def adjusts_logits(sampling: SamplingParams) -> bool:
    """Whether `adjust` may change anything for such a request."""
    return bool(_penalises(sampling) or sampling.logit_bias or sampling.min_tokens)


def adjust(logits: Tensor, requests: Sequence[Request], eos_token_ids: Iterable[int]) -> None:
    """Change `logits` [S, V] in place, one row per request."""
    _penalise(logits, requests)
    _add_bias(logits, requests)
    _ban_stops(logits, requests, frozenset(eos_token_ids))


class _Penalties(NamedTuple):
    row: int
    counts: TokenCounts
    sampling: SamplingParams


def _penalises(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty)


def _penalise(logits: Tensor, requests: Sequence[Request]) -> None:
    rows = [_Penalties(i, _counts(r), r.sampling) for i, r in enumerate(requests) if _penalises(r.sampling)]
    if not rows:
        return
    sizes = [len(row.counts.token_ids) for row in rows]

    def column(values: list[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values, np.float32), sizes)).to(logits.device)

    at_row = torch.from_numpy(np.repeat(np.array([row.row for row in rows]), sizes)).to(logits.device)
    at_token = torch.from_numpy(np.concatenate([row.counts.token_ids for row in rows])).to(logits.device)
    counts = torch.from_numpy(np.concatenate([row.counts.output_counts for row in rows])).to(logits.device)
    repetition = column([row.sampling.repetition_penalty for row in rows])
    frequency = column([row.sampling.frequency_penalty for row in rows])
    presence = column([row.sampling.presence_penalty for row in rows])

    values = logits[at_row, at_token]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[at_row, at_token] = values - frequency * counts - presence * (counts > 0)


def _counts(request: Request) -> TokenCounts:
    if request.token_counts is None:
        request.token_counts = TokenCounts(request.token_ids[: request.num_prompt_tokens])
    request.token_counts.catch_up(request.token_ids, request.num_prompt_tokens)
    return request.token_counts


def _add_bias(logits: Tensor, requests: Sequence[Request]) -> None:
    for row, request in enumerate(requests):
        if bias := request.sampling.logit_bias:
            token_ids = torch.tensor(list(bias), device=logits.device)
            logits[row, token_ids] += torch.tensor(list(bias.values()), device=logits.device)


def _ban_stops(logits: Tensor, requests: Sequence[Request], eos_token_ids: frozenset[int]) -> None:
    for row, request in enumerate(requests):
        if request.num_output_tokens < request.sampling.min_tokens:
            stops = eos_token_ids.union(request.sampling.stop_token_ids)
            logits[row, [token_id for token_id in stops if token_id < logits.shape[1]]] = float("-inf")
