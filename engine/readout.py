"""What a step reads out of the decoder's hidden rows: prompt log-probabilities, drawn tokens, embeddings.

`begin` launches that, and `finish` has the results on the host; between the two the next step may be launched, which
reads drawn tokens where they are (`tokens_of_rows`). What becomes of results is the business of `engine.steps`.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import prompt_logprobs
from engine.batch import Batch
from engine.device_copies import Returning, to_device
from engine.model.replay import AnyDecoder
from engine.prompt_logprobs import PromptLogprobs
from engine.request import Request
from engine.rows import Rows, places
from engine.sampling.sampler import DeviceLogprobs, Logprobs, Sampler, to_host

_NONE = torch.empty(0, dtype=torch.bool)


class Drawn(NamedTuple):
    """The tokens of a step, one for each of some requests of the batch."""

    places: NDArray[np.int64]  # in the batch
    requests: list[Request]
    token_ids: list[int]
    logprobs: list[Logprobs | None]

    def only(self, index: NDArray[np.int64]) -> "Drawn":
        """Some of them."""
        lists = ([column[i] for i in index.tolist()] for column in self[1:])
        return Drawn(self.places[index], *lists)


class Reading(NamedTuple):
    """Of one step, under way."""

    places: NDArray[np.int64]  # in the batch, of the S requests that draw a token
    requests: list[Request]  # these
    idle: NDArray[np.int64]  # places of the others
    embedded: NDArray[np.int64]  # places of those whose embeddings are computed
    scored: list[tuple[Request, PromptLogprobs]]
    is_sound: NDArray[np.bool_]  # [B]; as far as it is known before the results are there
    logprobs_of: list[int]  # which of `requests` want them
    returning: Returning  # tokens, whether their logits are finite, and idle rows; embeddings; each `logprobs_of`


class Readout:
    """Of one engine. `tokens_of_rows` [num_rows] int64: the token that each of `Rows` drew last, on the device."""

    def __init__(
        self, decoder: AnyDecoder, sampler: Sampler, rows: Rows, device: torch.device, keeps_tokens: bool
    ) -> None:
        """`keeps_tokens`: whether `tokens_of_rows` is wanted."""
        self.decoder = decoder
        self._sampler = sampler
        self._rows = rows
        self._device = device
        num_rows = len(rows.num_tokens) if keeps_tokens else 0
        self.tokens_of_rows = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def begin(self, batch: Batch, hidden: Tensor) -> Reading:
        """One token for each request whose tokens are all computed, unless it has all that it may; and the rest."""
        requests, row, num_tokens = batch.schedule
        is_sound = np.ones(len(requests), np.bool_)
        scored = self._score_prompts(batch, hidden, is_sound)
        is_whole = self._rows.num_uncomputed[row] == num_tokens
        draws = is_whole & ~self._rows.is_full(row)
        at, idle, embedded = places(draws), places(~draws), places(is_whole & self._rows.embeds[row])
        if len(idle):
            requests = [requests[place] for place in at.tolist()]
        tokens, finite, logprobs = self._draw(batch, hidden, at, requests, is_sound)
        idle_finite, vectors = _NONE, _NONE
        if len(idle):
            idle_finite = _rows_finite(self._last_rows(batch, hidden, idle))
        if len(embedded):
            vectors = torch.nn.functional.normalize(self._last_rows(batch, hidden, embedded).float(), dim=-1)
        returning = Returning([tokens, finite, idle_finite, vectors, *(part for parts in logprobs for part in parts)])
        logprobs_of = places(self._rows.num_logprobs[row[at]] >= 0).tolist()
        return Reading(at, requests, idle, embedded, scored, is_sound, logprobs_of, returning)

    def finish(self, reading: Reading, batch: Batch) -> tuple[Drawn, NDArray[np.bool_]]:
        """Wait for the results: tokens, and `is_sound` [B]: false where numbers were NaN or infinite, or whose grammar
        could not be followed. The hidden state of a prompt's last token, scaled to length 1, becomes its embedding.
        """
        tokens, finite, idle_finite, vectors, *of_logprobs = reading.returning.wait()
        is_sound = reading.is_sound
        is_sound[reading.places] &= finite.numpy()
        is_sound[reading.idle] &= idle_finite.numpy()
        for place, vector in zip(reading.embedded.tolist(), vectors.numpy(), strict=True):
            if is_sound[place]:
                batch.schedule.requests[place].embedding = vector.astype("<f4").tobytes()
        logprobs: list[Logprobs | None] = [None] * len(reading.requests)
        for i, place in enumerate(reading.logprobs_of):
            logprobs[place] = to_host(DeviceLogprobs(*of_logprobs[3 * i : 3 * i + 3]))
        return Drawn(reading.places, reading.requests, tokens.tolist(), logprobs), is_sound

    def _score_prompts(
        self, batch: Batch, hidden: Tensor, is_sound: NDArray[np.bool_]
    ) -> list[tuple[Request, PromptLogprobs]]:
        """Log-probabilities of the prompt tokens that follow the batch's, where they are wanted. Waits for them."""
        requests, row, num_tokens = batch.schedule
        found = []
        for place in places(self._rows.scores_prompt[row]).tolist():
            request, first = requests[place], int(batch.wanted_start[place])
            position = int(batch.num_computed[place]) + 1
            wanted = request.token_ids[position : min(position + int(num_tokens[place]), request.num_prompt_tokens)]
            if not wanted:
                continue
            rows = hidden[first : first + len(wanted)]
            num_top = request.prompt_work.num_logprobs
            scored = prompt_logprobs.compute(rows, wanted, position, num_top, self.decoder.logits)
            if scored is None:
                is_sound[place] = False
            else:
                found.append((request, scored))
        return found

    def _draw(
        self, batch: Batch, hidden: Tensor, at: NDArray[np.int64], requests: list[Request], is_sound: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, list[DeviceLogprobs]]:
        """Tokens [S], whether their logits are finite [S], and log-probabilities where they are wanted."""
        if not requests:
            return _NONE, _NONE, []
        row = batch.rows[at]
        logits = self.decoder.logits(self._last_rows(batch, hidden, at))
        tokens, logprobs = self._sampler.sample(logits, requests, row)
        is_sound[at[self._sampler.failed]] = False
        if len(self.tokens_of_rows):
            self.tokens_of_rows.index_copy_(0, to_device(row, self._device), tokens)
        return tokens, _rows_finite(logits), logprobs

    def _last_rows(self, batch: Batch, hidden: Tensor, at: NDArray[np.int64]) -> Tensor:
        """Of hidden [W, H], those of the last tokens of the requests at these places."""
        if len(at) == hidden.shape[0]:
            return hidden
        index = batch.wanted_start[at + 1].astype(np.int64) - 1
        return hidden[to_device(index, self._device)]


def _rows_finite(rows: Tensor) -> Tensor:
    """Whether each row of [B, N] is free of NaN and infinities, which all survive a sum."""
    return rows.sum(-1, dtype=torch.float32).isfinite()
