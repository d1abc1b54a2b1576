"""What a step computes from the decoder's hidden states: prompt log-probabilities, drawn tokens, embeddings.

`begin` launches this, and `finish` returns the results on the host. Between the two the next step may be launched: it
reads the drawn tokens on the device (`tokens_of_rows`). `engine.steps` decides what becomes of the results.
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
_NOWHERE: NDArray[np.int64] = np.empty(0, np.int64)


class Drawn(NamedTuple):
    """The tokens of a step, one for each of some requests of the batch."""

    places: NDArray[np.int64]  # in the batch
    requests: list[Request]
    token_ids: list[int]
    logprobs: list[Logprobs | None]

    def only(self, index: NDArray[np.int64]) -> "Drawn":
        """The tokens at these indices."""
        lists = ([column[i] for i in index.tolist()] for column in self[1:])
        return Drawn(self.places[index], *lists)


class Reading(NamedTuple):
    """The readout of one step, while it is under way."""

    places: NDArray[np.int64]  # [S], places in the batch of the requests that draw a token
    requests: list[Request]  # [S], these requests
    idle: NDArray[np.int64]  # places of the other requests
    embedded: NDArray[np.int64]  # places of the requests whose embeddings are computed
    scored: list[tuple[Request, PromptLogprobs]]
    failed: list[int]  # places of requests whose prompt is not finite or whose grammar cannot be followed
    logprobs_of: list[int]  # indices in `requests` of those that want log-probabilities
    returning: Returning  # tokens; whether logits, and idle rows, are finite; embeddings; log-probabilities of each


class Readout:
    """The readout of one engine. `tokens_of_rows` [num_rows] int64: the last token drawn by each row, on the device."""

    def __init__(
        self, decoder: AnyDecoder, sampler: Sampler, rows: Rows, device: torch.device, keeps_tokens: bool
    ) -> None:
        """`keeps_tokens`: whether to maintain `tokens_of_rows`."""
        self.decoder = decoder
        self._sampler = sampler
        self._rows = rows
        self._device = device
        self._keeps_tokens = keeps_tokens
        num_rows = len(rows.num_tokens) if keeps_tokens else 0
        self.tokens_of_rows = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def begin(self, batch: Batch, hidden: Tensor) -> Reading:
        """Launch the readout. A request draws a token if all its tokens are computed and its length limit allows it."""
        requests, row = batch.schedule.requests, batch.rows
        has_extras = np.count_nonzero(self._rows.has_extras[row]) > 0
        scored, unscored = self._score_prompts(batch, hidden) if has_extras else ([], [])
        draws = batch.is_whole & ~self._rows.is_full(row)
        at, idle = places(draws), places(~draws)
        if len(idle):
            requests = [requests[place] for place in at.tolist()]
        tokens, finite, logprobs, failed = self._draw(batch, hidden, at, requests)
        idle_finite, vectors, embedded, logprobs_of = _NONE, _NONE, _NOWHERE, list[int]()
        if len(idle):
            idle_finite = self._last_rows(batch, hidden, idle).isfinite().all(-1)
        if has_extras:
            embedded = places(batch.is_whole & self._rows.embeds[row])
            logprobs_of = places(self._rows.num_logprobs[row[at]] >= 0).tolist()
        if len(embedded):
            vectors = torch.nn.functional.normalize(self._last_rows(batch, hidden, embedded).float(), dim=-1)
        returning = Returning([tokens, finite, idle_finite, vectors, *(part for parts in logprobs for part in parts)])
        return Reading(at, requests, idle, embedded, scored, unscored + failed, logprobs_of, returning)

    def finish(self, reading: Reading, batch: Batch) -> tuple[Drawn, NDArray[np.bool_]]:
        """Wait for the results; return the tokens and `is_sound` [B].

        A request is not sound if its numbers were NaN or infinite, or its grammar could not be followed. Embeddings are
        stored in their requests: the hidden state of a prompt's last token, scaled to length 1.
        """
        tokens, finite, idle_finite, vectors, *of_logprobs = reading.returning.wait()
        is_sound: NDArray[np.bool_] = finite.numpy()
        if len(reading.idle) or reading.failed:
            is_sound = np.empty(len(batch.rows), np.bool_)
            is_sound[reading.places] = finite.numpy()
            is_sound[reading.idle] = idle_finite.numpy()
            is_sound[reading.failed] = False
        for place, vector in zip(reading.embedded.tolist(), vectors.numpy(), strict=True):
            if is_sound[place]:
                batch.schedule.requests[place].embedding = vector.astype("<f4").tobytes()
        logprobs: list[Logprobs | None] = [None] * len(reading.requests)
        for i, place in enumerate(reading.logprobs_of):
            logprobs[place] = to_host(DeviceLogprobs(*of_logprobs[3 * i : 3 * i + 3]))
        return Drawn(reading.places, reading.requests, tokens.tolist(), logprobs), is_sound

    def _score_prompts(self, batch: Batch, hidden: Tensor) -> tuple[list[tuple[Request, PromptLogprobs]], list[int]]:
        """Score the prompt tokens that follow the batch's tokens, where that is wanted. Waits for the device.

        Also returns the places of requests of which a logit is not finite.
        """
        requests, row, num_tokens, _ = batch.schedule
        found, failed = [], []
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
                failed.append(place)
            else:
                found.append((request, scored))
        return found, failed

    def _draw(
        self, batch: Batch, hidden: Tensor, at: NDArray[np.int64], requests: list[Request]
    ) -> tuple[Tensor, Tensor, list[DeviceLogprobs], list[int]]:
        """Return tokens [S], whether their logits are finite [S], log-probabilities where they are wanted, and the
        places of requests whose grammar cannot be followed."""
        if not requests:
            return _NONE, _NONE, [], []
        row = batch.rows if len(at) == len(batch.rows) else batch.rows[at]
        logits = self.decoder.logits(self._last_rows(batch, hidden, at))
        tokens, logprobs = self._sampler.sample(logits, requests, row)
        if self._keeps_tokens:
            self.tokens_of_rows.index_copy_(0, to_device(row, self._device), tokens)
        return tokens, logits.is_finite, logprobs, [int(at[i]) for i in self._sampler.failed]

    def _last_rows(self, batch: Batch, hidden: Tensor, at: NDArray[np.int64]) -> Tensor:
        """The rows of `hidden` [W, H] that belong to the last tokens of the requests at these places."""
        if len(at) == hidden.shape[0]:
            return hidden
        index = batch.wanted_start[at + 1].astype(np.int64) - 1
        return hidden[to_device(index, self._device)]
