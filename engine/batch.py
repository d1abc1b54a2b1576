"""The arrays of one step, which the decoder reads: gathered from `Rows` without a loop over tokens or requests."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.device_copies import to_device
from engine.request import Request
from engine.rows import UNKNOWN, Rows, Schedule, places
from kernels.api import AttentionMeta


class Progress(NamedTuple):
    """The progress of a request once the batch is computed."""

    request: Request
    num_computed_tokens: int
    num_final_blocks: int  # leading blocks with no KV to come: full ones, and the last if all known tokens are computed


class Batch(NamedTuple):
    """One step: T tokens of B requests. The tokens of each request are contiguous and in order.

    Once its KV is written, the last layer computes only the W wanted tokens: the last one of each request, or all of
    them if its prompt is scored.
    """

    schedule: Schedule
    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, rows of the rotary tables
    slots: Tensor  # [T] int64
    meta: AttentionMeta
    last: Tensor | None  # [W] int64, index of each wanted token; None if all are wanted
    last_meta: AttentionMeta  # as `meta`, with the wanted tokens as the only queries
    wanted_start: NDArray[np.int32]  # [B + 1], prefix sums of each request's number of wanted tokens
    num_computed: NDArray[np.int64]  # [B], how many tokens of each request were computed before the step
    is_whole: NDArray[np.bool_]  # [B], whether the step computes all remaining tokens of each request
    block_size: int

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.token_ids.shape[0]

    @property
    def rows(self) -> NDArray[np.int64]:
        """[B], the requests' indices in `Rows`."""
        return self.schedule.rows

    def progress(self) -> Iterator[Progress]:
        """Yield the progress of each request once the batch is computed."""
        after = self.num_computed + self.schedule.num_tokens
        num_final = np.where(self.is_whole, after + self.block_size - 1, after) // self.block_size
        yield from map(Progress, self.schedule.requests, after.tolist(), num_final.tolist())


def build(schedule: Schedule, rows: Rows, block_size: int, device: torch.device, tokens_of_rows: Tensor) -> Batch:
    """Build the arrays of a step on the device. Tokens not known to the host yet are taken from `tokens_of_rows`."""
    row, lengths = schedule.rows, schedule.num_tokens
    uncomputed = rows.num_uncomputed[row]
    computed = rows.num_tokens[row] - uncomputed
    is_decode = schedule.is_decode
    query_start = np.arange(len(lengths) + 1, dtype=np.int32) if is_decode else _prefix_sums(lengths)
    seq_lens = computed + lengths
    min_query_len, max_query_len = (1, 1) if is_decode else (int(lengths.min()), int(lengths.max()))
    max_seq_len = int(np.maximum.reduce(seq_lens))
    positions, row_of_token = _of_each_token(schedule, computed, query_start)
    block, offset = np.divmod(positions, block_size)
    slots = rows.block_tables[row_of_token, block] * np.int64(block_size) + offset

    num_blocks = -(-max_seq_len // block_size)
    meta = AttentionMeta(
        to_device(query_start, device),
        to_device(seq_lens.astype(np.int32), device),
        to_device(rows.block_tables[row, :num_blocks], device),
        max_query_len,
        max_seq_len,
        min_query_len,
    )
    last, last_meta, wanted_start = _wanted(rows.scores_prompt[row], query_start, meta)
    return Batch(
        schedule=schedule,
        token_ids=_token_ids_on(device, schedule, rows, computed, query_start, tokens_of_rows),
        positions=to_device(positions + rows.rope_start[row_of_token], device),
        slots=to_device(slots, device),
        meta=meta,
        last=last,
        last_meta=last_meta,
        wanted_start=wanted_start,
        num_computed=computed,
        is_whole=lengths == uncomputed,
        block_size=block_size,
    )


def _of_each_token(
    schedule: Schedule, computed: NDArray[np.int64], query_start: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([T] position in its request, [T] row) of each token."""
    lengths = schedule.num_tokens
    if schedule.is_decode:
        return computed, schedule.rows
    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - computed, lengths)
    return positions, np.repeat(schedule.rows, lengths)


def _prefix_sums(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    sums = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=sums[1:])
    return sums


def _wanted(
    is_scored: NDArray[np.bool_], query_start: NDArray[np.int32], meta: AttentionMeta
) -> tuple[Tensor | None, AttentionMeta, NDArray[np.int32]]:
    """`last`, `last_meta` and `wanted_start` of a batch. is_scored: [B], whether all tokens of a request are wanted."""
    if meta.max_query_len == 1:
        return None, meta, query_start
    num_wanted = np.where(is_scored, np.diff(query_start), 1)
    if num_wanted.sum() == query_start[-1]:
        return None, meta, query_start
    start, device = _prefix_sums(num_wanted), meta.seq_lens.device
    last = to_device(_last_of_each(query_start[1:], num_wanted, start), device)
    most = int(num_wanted.max())
    last_meta = AttentionMeta(to_device(start, device), meta.seq_lens, meta.block_tables, most, meta.max_seq_len)
    return last, last_meta, start


def _last_of_each(ends: NDArray[np.int32], counts: NDArray[np.int64], starts: NDArray[np.int32]) -> NDArray[np.int64]:
    """The `counts` indices before each of `ends`; `starts` are the prefix sums of `counts`."""
    first = ends - counts
    return np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)


def _token_ids_on(
    device: torch.device,
    schedule: Schedule,
    rows: Rows,
    computed: NDArray[np.int64],
    query_start: NDArray[np.int32],
    tokens_of_rows: Tensor,
) -> Tensor:
    """[T] on the device; unknown last tokens are copied from `tokens_of_rows`."""
    token_ids = to_device(_token_ids(schedule, rows, computed, query_start), device)
    if len(tokens_of_rows) and len(unknown := places(rows.last_token[schedule.rows] == UNKNOWN)):
        at = to_device(query_start[unknown + 1].astype(np.int64) - 1, device)
        token_ids.index_copy_(0, at, tokens_of_rows[to_device(schedule.rows[unknown], device)])
    return token_ids


def _token_ids(
    schedule: Schedule, rows: Rows, computed: NDArray[np.int64], query_start: NDArray[np.int32]
) -> NDArray[np.int64]:
    """[T] on the host. Requests that decode take their last token from `rows`; only prompts are read from requests."""
    row, lengths = schedule.rows, schedule.num_tokens
    prompts = places(rows.num_uncomputed[row] > 1)
    if not len(prompts):
        return rows.last_token[row]
    token_ids = np.empty(query_start[-1], np.int64)
    token_ids[query_start[1:] - 1] = rows.last_token[row]
    for place in prompts.tolist():
        start, num_tokens = int(computed[place]), int(lengths[place])
        part = schedule.requests[place].token_ids[start : start + num_tokens]
        token_ids[query_start[place] : query_start[place + 1]] = part
    return token_ids
