"""Inputs of attention: sequences whose KV is in blocks of a pool."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.api import AttentionMeta
from tests.contract.kernels.backends import Backend


@dataclass(frozen=True)
class Batch:
    q: Tensor
    kv: Tensor
    meta: AttentionMeta

    def rows(self, seq: int) -> slice:
        start, end = self.meta.query_start[seq : seq + 2].tolist()
        return slice(start, end)


def make_batch(
    backend: Backend,
    seqs: list[tuple[int, int]],  # (tokens in the KV, how many of them are queries)
    *,
    head_dim: int = 64,
    group: int = 3,
    num_kv_heads: int = 2,
    block_size: int = 16,
    planes: int = 2,
) -> Batch:
    """Put blocks in random order into a pool of three layers. KV that no sequence owns is NaN, and must not be read."""
    num_blocks = [-(-seq_len // block_size) for seq_len, _ in seqs]
    order = random.Random(0).sample(range(sum(num_blocks) + 3), sum(num_blocks))
    pool = torch.full((sum(num_blocks) + 3, 3, planes, num_kv_heads, block_size, head_dim), float("nan"))
    tables = torch.full((len(seqs), max(num_blocks) + 2), -1, dtype=torch.int32)
    for i, (seq_len, _) in enumerate(seqs):
        own = [order.pop() for _ in range(num_blocks[i])]
        tables[i, : len(own)] = torch.tensor(own)
        for j, block in enumerate(own):
            written = min(block_size, seq_len - j * block_size)
            pool[block, 1, :, :, :written] = torch.randn(planes, num_kv_heads, written, head_dim)
    query_lens = [num_queries for _, num_queries in seqs]
    meta = AttentionMeta(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int().to(backend.device),
        seq_lens=torch.tensor([seq_len for seq_len, _ in seqs]).int().to(backend.device),
        block_tables=tables.to(backend.device),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for seq_len, _ in seqs),
    )
    pool = pool.to(backend.device, backend.dtype)
    return Batch(backend.randn(sum(query_lens), num_kv_heads * group, head_dim), pool[:, 1], meta)
