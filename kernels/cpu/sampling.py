"""Sampling on a CPU: one pass over a row for its probabilities, a selection for its filters, one pass for its noise."""

import torch
from torch import Tensor

from kernels.api import Filters, SamplingKernels
from kernels.cpu.library import Library


def kernels(library: Library) -> SamplingKernels:
    """The sampling kernels of a library."""

    def draw(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
        return _draw(library, logits, temperature, keys, (0, 0, 0))

    def draw_filtered(logits: Tensor, temperature: Tensor, keys: Tensor, filters: Filters) -> Tensor:
        rows, (top_k, top_p, min_p) = logits.shape[0], filters
        columns = _address(top_p, torch.float32, rows), _address(min_p, torch.float32, rows)
        return _draw(library, logits, temperature, keys, (_address(top_k, torch.int64, rows), *columns))

    def mask(logits: Tensor, words: Tensor) -> None:
        rows, size = logits.shape
        if words.shape[1] != -(-size // 32):
            raise TypeError(f"expected a bit for each of {size} tokens, not {words.shape[1]} words of 32")
        addresses = _address(logits, torch.float32, rows), _address(words, torch.int32, rows)
        library.mask(*addresses, rows, size, torch.get_num_threads())

    return SamplingKernels(mask, draw, draw_filtered)


def _draw(library: Library, logits: Tensor, temperature: Tensor, keys: Tensor, filters: tuple[int, int, int]) -> Tensor:
    """`filters` are the addresses of `Filters`, or 0 for those that are off."""
    logits, (rows, size) = logits.contiguous(), logits.shape
    if not size:
        raise ValueError("there is no token to draw")
    tokens = torch.empty(rows, dtype=torch.int64)
    library.draw(
        *(_address(logits, torch.float32, rows), _address(temperature, torch.float32, rows)),
        *(_address(keys, torch.int32, rows), *filters, tokens.data_ptr()),
        *(rows, size, torch.get_num_threads()),
    )
    return tokens


def _address(x: Tensor, dtype: torch.dtype, rows: int) -> int:
    """Return the address of `x`. Raises TypeError unless it is contiguous, of this dtype, with that many rows."""
    if x.dtype is not dtype or not x.is_contiguous() or x.shape[0] != rows:
        raise TypeError(f"expected contiguous {dtype} of {rows} rows, not {x.dtype} of shape {tuple(x.shape)}")
    return x.data_ptr()
