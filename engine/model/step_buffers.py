"""The inputs of a decode step at fixed addresses, for steps that are recorded and replayed."""

import numpy as np
import torch

from engine.batch import Batch
from engine.config import EngineConfig
from engine.rows import Schedule
from kernels.api import AttentionMeta


class StepBuffers:
    """A batch of decodes at fixed addresses; smaller batches are its first rows."""

    def __init__(self, num_rows: int, config: EngineConfig) -> None:
        device = torch.device(config.device)
        self._config = config
        self._token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._slots = torch.full((num_rows,), -1, dtype=torch.int64, device=device)
        self._seq_lens = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros(num_rows, config.max_blocks_per_request, dtype=torch.int32, device=device)
        self._query_start = torch.arange(num_rows + 1, dtype=torch.int32, device=device)

    def fill(self, batch: Batch, size: int) -> None:
        """Copy the batch's rows, and pad them up to `size` rows."""
        num_rows, num_blocks = batch.meta.block_tables.shape
        self._token_ids[:num_rows].copy_(batch.token_ids)
        self._positions[:num_rows].copy_(batch.positions)
        self._slots[:num_rows].copy_(batch.slots)
        self._seq_lens[:num_rows].copy_(batch.meta.seq_lens)
        self._tables[:num_rows, :num_blocks].copy_(batch.meta.block_tables)
        if num_rows < size:  # tokens and positions of earlier steps may stay: they do no harm
            self._slots[num_rows:size].fill_(-1)
            self._seq_lens[num_rows:size].zero_()

    def batch(self, size: int) -> Batch:
        """A batch of the first `size` rows, whose sequences may be of any length."""
        meta = AttentionMeta(
            query_start=self._query_start[: size + 1],
            seq_lens=self._seq_lens[:size],
            block_tables=self._tables[:size],
            max_query_len=1,
            max_seq_len=self._config.max_model_len,
        )
        empty = np.empty(0, np.int64)
        return Batch(
            schedule=Schedule([], empty, empty, 0),
            token_ids=self._token_ids[:size],
            positions=self._positions[:size],
            slots=self._slots[:size],
            meta=meta,
            last=None,
            last_meta=meta,
            wanted_start=np.arange(size + 1, dtype=np.int32),
            num_computed=empty,
            is_whole=np.empty(0, np.bool_),
            block_size=self._config.block_size,
        )
