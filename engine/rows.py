"""Columns over the running requests, one row each, so that a step gathers arrays instead of walking Python objects.

A request has a row from being scheduled until it stops running. Rows hold what changes rarely: block tables and
sampling parameters.
"""

import numpy as np
from numpy.typing import NDArray

from engine.logit_adjust import adjusts_logits
from engine.request import Request

MIN_TEMPERATURE = 1e-5  # below it a draw is greedy: dividing by less overflows


class Rows:
    """`num_rows` requests at most. All arrays are indexed by row."""

    def __init__(self, num_rows: int, max_blocks_per_request: int) -> None:
        self._free = list(range(num_rows))
        self._num_blocks = np.zeros(num_rows, np.int32)  # entries of block_tables that are set
        self.block_tables: NDArray[np.int32] = np.zeros((num_rows, max_blocks_per_request), np.int32)
        self.temperature: NDArray[np.float32] = np.zeros(num_rows, np.float32)
        self.top_p: NDArray[np.float32] = np.ones(num_rows, np.float32)
        self.top_k: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.min_p: NDArray[np.float32] = np.zeros(num_rows, np.float32)
        self.adjusts: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # whether sampling begins with changed logits
        self.num_logprobs: NDArray[np.int64] = np.full(num_rows, -1, np.int64)
        self.seed: NDArray[np.uint64] = np.zeros(num_rows, np.uint64)

    def take(self, request: Request) -> None:
        """Give the request a row, with its parameters and the blocks that it has."""
        row = request.row = self._free.pop()
        sampling = request.sampling
        self.temperature[row] = sampling.temperature if sampling.temperature >= MIN_TEMPERATURE else 0
        self.top_p[row] = sampling.top_p
        self.top_k[row] = sampling.top_k
        self.min_p[row] = sampling.min_p
        self.seed[row] = sampling.seed
        self.adjusts[row] = adjusts_logits(sampling)
        self.num_logprobs[row] = sampling.num_logprobs
        self._num_blocks[row] = 0
        self.append_blocks(request)

    def append_blocks(self, request: Request) -> None:
        """Take over blocks that the request has got since."""
        row, known = request.row, int(self._num_blocks[request.row])
        self.block_tables[row, known : len(request.block_ids)] = request.block_ids[known:]
        self._num_blocks[row] = len(request.block_ids)

    def give_back(self, request: Request) -> None:
        """The request runs no more."""
        if request.row >= 0:
            self._free.append(request.row)
            request.row = -1
