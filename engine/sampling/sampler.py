"""From logits to tokens, for all rows of a step at once.

Each row's token is a pure function of its own logits, parameters, seed and position: the argmax of
logits / temperature + Gumbel noise over the tokens that top-k, top-p and min-p keep. These three filters amount to one
cutoff per row.

Where the device has a kernel for that (`SamplingKernels`), it draws. The rest is done with torch, which finds the
cutoff among the NUM_CANDIDATES likeliest tokens if they suffice, else in the whole sorted row.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.device_copies import to_device
from engine.grammar.masks import GrammarMasks
from engine.request import Request
from engine.rows import Rows
from engine.sampling import largest
from engine.sampling.logit_adjust import adjust
from engine.sampling.noise import gumbel, make_keys
from kernels.api import Filters, Logits, SamplingKernels
from kernels.dispatch import log_total

NUM_CANDIDATES = 256


class Logprobs(NamedTuple):
    """Log-probabilities at one output position in the model's own distribution, before temperature and penalties."""

    logprob: float  # of the drawn token
    top_token_ids: list[int]
    top_logprobs: list[float]


class DeviceLogprobs(NamedTuple):
    """The same on the device."""

    logprob: Tensor  # [1]
    top_token_ids: Tensor
    top_logprobs: Tensor


def to_host(logprobs: DeviceLogprobs) -> Logprobs:
    """Convert log-probabilities; waits until they are on the host."""
    logprob, top_token_ids, top_logprobs = (part.tolist() for part in logprobs)
    return Logprobs(logprob[0], top_token_ids, top_logprobs)


class Sampler:
    """Draws tokens. Has no state of requests; `failed` are the places of those that the last call could not serve."""

    def __init__(
        self,
        rows: Rows,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        device: torch.device,
        kernels: SamplingKernels,
        masks: GrammarMasks | None = None,
    ) -> None:
        """Without `masks` no request may have a grammar."""
        self._rows = rows
        self.failed: list[int] = []
        self._masks = masks
        self._kernels = kernels
        self._eos_token_ids = frozenset(eos_token_ids)
        self._all_tokens = torch.arange(vocab_size, dtype=torch.int32, device=device)

    def sample(
        self, logits: Logits, requests: Sequence[Request], row: NDArray[np.int64]
    ) -> tuple[Tensor, list[DeviceLogprobs]]:
        """Draw a token per request, [S] int64, from logits of S rows; and log-probabilities for those that want them.

        row: [S], indices in `Rows`. Waits for the device only if a row `waits`. A request whose grammar cannot be
        followed gets an error, and a meaningless token.
        """
        self.failed = []
        values, _, likeliest = logits
        if np.count_nonzero(self._rows.adjusts[row]):
            values, likeliest = self._adjusted(values, requests, row), None
        tokens = self._draw(values, row, likeliest)
        num_top = self._rows.num_logprobs[row].tolist()
        return tokens, [
            _logprobs(logits.values[i], tokens[i : i + 1], num) for i, num in enumerate(num_top) if num >= 0
        ]

    def _adjusted(self, logits: Tensor, requests: Sequence[Request], row: NDArray[np.int64]) -> Tensor:
        index = np.flatnonzero(self._rows.adjusts[row])
        are_all = len(index) == len(row)
        changed = logits.clone() if are_all else logits[self._on(index)]
        adjusted = requests if are_all else [requests[i] for i in index.tolist()]
        adjust(changed, adjusted, self._eos_token_ids)
        if self._masks is not None:
            self._masks.apply(changed, adjusted)
            self.failed = index[self._masks.failed].tolist()
        return changed if are_all else logits.index_copy(0, self._on(index), changed)

    def _draw(self, logits: Tensor, row: NDArray[np.int64], likeliest: Tensor | None) -> Tensor:
        """Draw tokens [S] int64. Rows with temperature 0 take the likeliest token, in `likeliest` if that is known."""
        temperature = self._rows.temperature[row]
        if likeliest is not None and not np.count_nonzero(temperature):
            return likeliest
        is_filtered = self._filters(row).any()
        if is_filtered and self._kernels.draw_filtered:
            return self._kernels.draw_filtered(logits, self._on(temperature), self._keys(row), self._filters_of(row))
        if not is_filtered and self._kernels.draw:
            return self._kernels.draw(logits, self._on(temperature), self._keys(row))
        random = np.flatnonzero(temperature > 0)
        if not len(random):
            return largest.argmax(logits)
        is_mixed = len(random) < len(row)
        tokens = largest.argmax(logits) if is_mixed else torch.empty(len(row), dtype=torch.int64, device=logits.device)
        row = row[random]
        index = self._on(random)
        scaled = logits[index] / self._on(self._rows.temperature[row]).unsqueeze(1)
        tokens[index] = self._draw_random(scaled, self._keys(row), row)
        return tokens

    def _draw_random(self, scaled: Tensor, keys: Tensor, row: NDArray[np.int64]) -> Tensor:
        """Draw tokens [R] int64 from logits [R, V] that are already divided by the temperature."""
        is_plain = ~self._filters(row)
        tokens = torch.empty(len(row), dtype=torch.int64, device=scaled.device)
        if is_plain.any():
            plain = self._on(np.flatnonzero(is_plain))
            tokens[plain] = largest.argmax(scaled[plain] + gumbel(keys[plain], self._all_tokens))
        if not is_plain.all():
            filtering = self._on(np.flatnonzero(~is_plain))
            filters = self._filters_of(row).at(filtering)
            tokens[filtering] = draw_filtered(scaled[filtering], keys[filtering], filters)
        return tokens

    def _filters(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have a filter that can exclude tokens."""
        rows, vocab_size = self._rows, len(self._all_tokens)
        in_top_k = (rows.top_k[row] > 0) & (rows.top_k[row] < vocab_size)
        return in_top_k | (rows.top_p[row] < 1) | (rows.min_p[row] > 0)

    def _filters_of(self, row: NDArray[np.int64]) -> Filters:
        rows, vocab_size = self._rows, len(self._all_tokens)
        top_k = np.where(rows.top_k[row] > 0, np.minimum(rows.top_k[row], vocab_size), vocab_size)
        return Filters(self._on(top_k), self._on(rows.top_p[row]), self._on(rows.min_p[row]))

    def _keys(self, row: NDArray[np.int64]) -> Tensor:
        return self._on(make_keys(self._rows.seed[row], self._rows.num_tokens[row]))

    def _on(self, array: NDArray[np.generic]) -> Tensor:
        return to_device(array, self._all_tokens.device)


def draw_filtered(scaled: Tensor, keys: Tensor, filters: Filters) -> Tensor:
    """Draw tokens [S] from logits [S, V], divided by the temperature, under filters."""
    vocab_size = scaled.shape[1]
    total = log_total(scaled)
    values, ids = largest.top(scaled, min(NUM_CANDIDATES, vocab_size))
    lowest, enough = cutoff(largest.sort(values), total, filters, vocab_size)
    # Tokens beyond the candidates may equal the least of these, so the cutoff is only certain if it is higher.
    least = values.amin(-1)
    enough &= (lowest > least) | (values.shape[1] == vocab_size)
    enough |= least.isneginf()  # then no token beyond the candidates can be drawn
    tokens = ids.gather(1, _draw_above(values, ids, lowest, keys).unsqueeze(1)).squeeze(1)
    if not bool(enough.all()):
        rest = (~enough).nonzero().squeeze(1)
        lowest, _ = cutoff(largest.sort(scaled[rest]), total[rest], filters.at(rest), vocab_size)
        all_ids = torch.arange(vocab_size, device=scaled.device)
        tokens[rest] = _draw_above(scaled[rest], all_ids, lowest, keys[rest])
    return tokens


def cutoff(values: Tensor, log_total: Tensor, filters: Filters, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the lowest logit that is kept, [S], and whether `values` suffice to determine it, [S].

    values: [S, K], the largest of `vocab_size` logits in descending order; log_total: [S], logsumexp of the whole row.
    Top-p is the share of the mass that top-k keeps; min-p is relative to the likeliest token.
    """
    num_values = values.shape[1]
    place = torch.arange(num_values, device=values.device)
    in_top_k = place < filters.top_k.unsqueeze(1)
    ends_in_values = filters.top_k <= num_values
    within = values.masked_fill(~in_top_k, float("-inf"))
    log_kept = torch.where(ends_in_values, within.logsumexp(-1), log_total)
    probabilities = (within - log_kept.unsqueeze(1)).exp()
    before = probabilities.cumsum(-1) - probabilities  # mass of the likelier tokens
    top_p = torch.where(filters.top_p < 1, filters.top_p, torch.inf)  # 1 is off, even if the mass is rounded above 1
    in_top_p = (before < top_p.unsqueeze(1)) | (place == 0)
    last = (in_top_k & in_top_p).sum(-1, keepdim=True) - 1
    lowest = torch.maximum(values.gather(1, last).squeeze(1), values[:, 0] + filters.min_p.log())
    reaches_top_p = ~in_top_p[:, -1]
    reaches_min_p = lowest > values[:, -1]
    knows_total = ends_in_values | (filters.top_k >= vocab_size)
    return lowest, knows_total & (ends_in_values | reaches_top_p | reaches_min_p)


def _draw_above(values: Tensor, ids: Tensor, lowest: Tensor, keys: Tensor) -> Tensor:
    """Draw among the values [S, K] of tokens `ids` that are not below `lowest`; returns places in `values`, [S]."""
    noisy = values + gumbel(keys, ids.to(torch.int32))
    return largest.argmax(noisy.masked_fill_(values < lowest.unsqueeze(1), float("-inf")))


def _logprobs(logits: Tensor, token: Tensor, num_top: int) -> DeviceLogprobs:
    """Log-probabilities of `token` [1] and of the `num_top` likeliest tokens; logits: [V]."""
    total = log_total(logits.unsqueeze(0))
    top_values, top_ids = logits.topk(min(num_top, len(logits)))
    return DeviceLogprobs(logits.gather(0, token) - total, top_ids, top_values - total)
