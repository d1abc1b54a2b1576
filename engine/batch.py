"""The arrays of one step: what the decoder reads, built from the scheduled requests without a loop over tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.request import Request
from engine.rows import Rows
from engine.scheduler import Scheduled
from kernels.api import AttentionMeta


class Progress(NamedTuple):
    """How far a request is once the batch is computed."""

    request: Request
    num_computed_tokens: int
    num_final_blocks: int  # leading blocks whose KV changes no more: full, or the last of all tokens known so far


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. T tokens of B requests; each request's tokens are neighbours, in order."""

    scheduled: list[Scheduled]
    rows: NDArray[np.int64]  # [B], into `Rows`
    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64
    meta: AttentionMeta
    last: Tensor | None  # [B] int64, index of each request's last token; None where each request has just one
    last_meta: AttentionMeta  # as if these were the only queries
    block_size: int

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.token_ids.shape[0]

    def progress(self) -> Iterator[Progress]:
        """Of each request; while the batch is being computed, `request.num_computed_tokens` is still the old one."""
        for request, num_tokens in self.scheduled:
            after = request.num_computed_tokens + num_tokens
            rounded = after + self.block_size - 1 if after == request.num_tokens else after
            yield Progress(request, after, rounded // self.block_size)


def build(scheduled: list[Scheduled], rows: Rows, block_size: int, device: torch.device) -> Batch:
    """The arrays of a step, on the device."""
    num_requests = len(scheduled)
    row = np.fromiter((request.row for request, _ in scheduled), np.int64, num_requests)
    lengths = np.fromiter((num_tokens for _, num_tokens in scheduled), np.int64, num_requests)
    computed = np.fromiter((request.num_computed_tokens for request, _ in scheduled), np.int64, num_requests)
    query_start = np.zeros(num_requests + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    seq_lens = computed + lengths
    max_query_len, max_seq_len = int(lengths.max()), int(seq_lens.max())
    one_each = max_query_len == 1

    if one_each:
        positions, row_of_token = computed, row
    else:
        positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - computed, lengths)
        row_of_token = np.repeat(row, lengths)
    slots = rows.block_tables[row_of_token, positions // block_size] * np.int64(block_size) + positions % block_size

    num_blocks = -(-max_seq_len // block_size)
    seq_lens_on = _on(seq_lens.astype(np.int32), device)
    tables_on = _on(rows.block_tables[row, :num_blocks], device)
    meta = AttentionMeta(_on(query_start, device), seq_lens_on, tables_on, max_query_len, max_seq_len)
    ones = np.arange(num_requests + 1, dtype=np.int32)
    return Batch(
        scheduled=scheduled,
        rows=row,
        token_ids=_on(_token_ids(scheduled, computed, int(query_start[-1])), device),
        positions=_on(positions, device),
        slots=_on(slots, device),
        meta=meta,
        last=None if one_each else _on(query_start[1:].astype(np.int64) - 1, device),
        last_meta=meta if one_each else AttentionMeta(_on(ones, device), seq_lens_on, tables_on, 1, max_seq_len),
        block_size=block_size,
    )


def _token_ids(scheduled: list[Scheduled], computed: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    if total == len(scheduled):
        tokens = (request.token_ids[start] for (request, _), start in zip(scheduled, computed.tolist(), strict=True))
        return np.fromiter(tokens, np.int64, total)
    begun = zip(scheduled, computed.tolist(), strict=True)
    parts = [np.array(request.token_ids[start : start + n], np.int64) for (request, n), start in begun]
    return np.concatenate(parts)


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    """On a CPU the array itself; on a GPU a copy through pinned memory, which does not make the step wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
