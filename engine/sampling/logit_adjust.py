"""Adjustments of logits before a token is drawn: logit_bias, penalties, and no stop before min_tokens.

First logit_bias is added, as in vLLM and transformers. With c the number of times a token occurs in the output:
    repetition (token in prompt or output):  l / r if l > 0 else l * r
    frequency, presence:                     l - frequency * c - presence * [c > 0]
Then stop tokens get -inf while the output has fewer than min_tokens tokens. If there is a grammar,
`engine.grammar.masks` decides when the output may stop.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baton.request import SamplingParams
from engine.request import Request
from engine.sampling.token_counts import TokenCounts


def adjusts_logits(sampling: SamplingParams) -> bool:
    """Whether these parameters change logits before a token is drawn."""
    return bool(_penalises(sampling) or sampling.logit_bias or sampling.min_tokens or sampling.grammar)


def adjust(logits: Tensor, requests: Sequence[Request], eos_token_ids: Iterable[int]) -> None:
    """Adjust `logits` [S, V] in place, one row per request."""
    _add_bias(logits, requests)
    _penalise(logits, requests)
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
    rows = [(row, _bias(request)) for row, request in enumerate(requests) if request.sampling.logit_bias]
    if not rows:
        return
    at_row = np.repeat([row for row, _ in rows], [len(token_ids) for _, (token_ids, _) in rows])
    at_token = np.concatenate([token_ids for _, (token_ids, _) in rows])
    values = np.concatenate([values for _, (_, values) in rows])
    at = torch.from_numpy(at_row).to(logits.device), torch.from_numpy(at_token).to(logits.device)
    logits[at] += torch.from_numpy(values).to(logits.device)


def _bias(request: Request) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if request.bias is None:
        bias = request.sampling.logit_bias
        request.bias = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)
    return request.bias


def _ban_stops(logits: Tensor, requests: Sequence[Request], eos_token_ids: frozenset[int]) -> None:
    at_row: list[int] = []
    at_token: list[int] = []
    for row, request in enumerate(requests):
        if request.grammar is None and request.num_output_tokens < request.sampling.min_tokens:
            stops = eos_token_ids.union(request.sampling.stop_token_ids)
            at_token += [token_id for token_id in stops if token_id < logits.shape[1]]
            at_row += [row] * (len(at_token) - len(at_row))
    if at_row:
        logits[at_row, at_token] = float("-inf")
