"""Applies grammars to a step's requests: logits of tokens that the grammar does not allow become -inf.

The masks of all rows are computed at once, on llguidance's own threads, from the tokens of the requests. They apply
after penalties and bias, and before temperature and filters. Where the grammar allows the output to end, the request's
stop tokens are allowed as well as EOS; before min_tokens neither is, unless nothing else would be allowed.
"""

import time
from collections.abc import Collection, Sequence

import numpy as np
import torch
from llguidance import LLExecutor
from numpy.typing import NDArray
from torch import Tensor

from engine.grammar.state import GrammarState
from engine.request import Request
from kernels.api import Mask

_MAX_THREADS = 16
_WATCH_S = 0.01  # if the masks of a step take longer, the next ones are timed one by one
_SLOW_S = 0.004  # for one mask; most take a hundredth of it

Words = NDArray[np.int32]  # [S, ceil(V / 32)], a bit per token


class GrammarMasks:
    """The masks of one engine. `failed` are the places of rows whose grammar cannot be followed: `request.error` says
    why."""

    def __init__(
        self,
        vocab_size: int,
        token_ids: Collection[int],
        eos_token_ids: Collection[int],
        device: torch.device,
        num_threads: int,
        mask: Mask,
    ) -> None:
        """`token_ids` are those with a text: the others are never drawn. `mask` runs on the device."""
        self.failed: list[int] = []
        self._vocab_size = vocab_size
        self._token_ids = self._bits(token_ids)
        self._eos_token_ids = self._bits(eos_token_ids)
        self._device = device
        self._mask = mask
        self._num_threads = min(num_threads, _MAX_THREADS)
        self._executor: LLExecutor | None = None  # its threads are started when they are needed
        self._is_watching = False

    def apply(self, logits: Tensor, requests: Sequence[Request]) -> None:
        """Mask `logits` [S, V] in place, one row per request."""
        self.failed = []
        places = [place for place, request in enumerate(requests) if request.grammar is not None]
        if not places:
            return
        chosen = [(request, request.grammar) for request in requests if request.grammar is not None]
        words = self._fill(chosen)
        words &= self._token_ids
        for place, row, (request, state) in zip(places, words, chosen, strict=True):
            self._allow_stops(row, request, state)
            request.error = state.error()
            if request.error is not None:
                self.failed.append(place)
                row[:] = -1
        self._forbid(logits, places, words)

    def _fill(self, chosen: Sequence[tuple[Request, GrammarState]]) -> Words:
        words = np.empty((len(chosen), len(self._token_ids)), np.int32)
        if self._is_watching:
            self._fill_one_by_one(chosen, words)
        else:
            start_s = time.perf_counter()
            self._fill_at_once(chosen, words)
            self._is_watching = time.perf_counter() - start_s > _WATCH_S
        return words

    def _fill_at_once(self, chosen: Sequence[tuple[Request, GrammarState]], words: Words) -> None:
        executor = self._executor = self._executor or LLExecutor(self._num_threads)
        for request, state in chosen:
            state.catch_up(request.token_ids, request.num_prompt_tokens)
        matchers = [(state.matcher, i) for i, (_, state) in enumerate(chosen)]
        executor.unsafe_compute_mask_ptr(matchers, words.ctypes.data, words.strides[0], len(chosen))

    def _fill_one_by_one(self, chosen: Sequence[tuple[Request, GrammarState]], words: Words) -> None:
        """The same, adding the time of slow masks to their requests' `slow_s`. Goes on as long as there are any."""
        self._is_watching = False
        for i, one in enumerate(chosen):
            start_s = time.thread_time()
            self._fill_at_once([one], words[i : i + 1])
            took_s = time.thread_time() - start_s
            if took_s > _SLOW_S:
                one[1].slow_s += took_s
                self._is_watching = True

    def _allow_stops(self, row: Words, request: Request, state: GrammarState) -> None:
        """Allow or forbid the tokens that end the output, in one row of the mask."""
        if state.stop_token_ids and (row & self._eos_token_ids).any():
            row |= self._bits(state.stop_token_ids)
        if request.num_output_tokens < request.sampling.min_tokens:
            goes_on = row & ~(self._eos_token_ids | self._bits(state.stop_token_ids))
            if goes_on.any():
                row[:] = goes_on

    def _forbid(self, logits: Tensor, places: list[int], words: Words) -> None:
        on_device = torch.from_numpy(words).to(self._device)
        if len(places) == logits.shape[0]:
            self._mask(logits, on_device)
        else:
            index = torch.tensor(places, device=self._device)
            rows = logits[index]
            self._mask(rows, on_device)
            logits[index] = rows

    def _bits(self, token_ids: Collection[int]) -> Words:
        """[ceil(V / 32)] with these tokens' bits set; tokens beyond the vocabulary are ignored."""
        flags = np.zeros(-(-self._vocab_size // 32) * 32, np.bool_)
        flags[[token_id for token_id in token_ids if 0 <= token_id < self._vocab_size]] = True
        return np.packbits(flags, bitorder="little").view(np.int32)
