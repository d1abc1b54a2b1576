"""Sampling on a CPU: one pass over a row for its probabilities, one for its noise, and a selection for its filters."""

import torch
from torch import Tensor

from kernels.api import Filters
from kernels.cpu.library import Library


class Sampling:
    """The sampling kernels of a library."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def draw(self, logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
        """See `kernels.api.Draw`."""
        return self._draw(logits, temperature, keys, (0, 0, 0))

    def draw_filtered(self, logits: Tensor, temperature: Tensor, keys: Tensor, filters: Filters) -> Tensor:
        """See `kernels.api.FilteredDraw`."""
        top_k, top_p, min_p = filters
        rows = logits.shape[0]
        columns = _column(top_k, torch.int64, rows), _column(top_p, torch.float32, rows)
        return self._draw(logits, temperature, keys, (*columns, _column(min_p, torch.float32, rows)))

    def _draw(self, logits: Tensor, temperature: Tensor, keys: Tensor, filters: tuple[int, int, int]) -> Tensor:
        logits, (rows, size) = logits.contiguous(), logits.shape
        if not size:
            raise ValueError("there is no token to draw")
        tokens = torch.empty(rows, dtype=torch.int64)
        self._library.draw(
            *(_column(logits, torch.float32, rows), _column(temperature, torch.float32, rows)),
            *(_column(keys, torch.int32, rows), *filters, tokens.data_ptr()),
            *(rows, size, torch.get_num_threads()),
        )
        return tokens


def _column(x: Tensor, dtype: torch.dtype, rows: int) -> int:
    """Return the address of `x`. Raises TypeError unless it is contiguous, of this dtype, with that many rows."""
    if x.dtype is not dtype or not x.is_contiguous() or x.shape[0] != rows:
        raise TypeError(f"expected contiguous {dtype} of {rows} rows, not {x.dtype} of shape {tuple(x.shape)}")
    return x.data_ptr()
