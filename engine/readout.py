"""What a step reads out of the decoder's hidden rows: prompt log-probabilities, drawn tokens, embeddings.

Each method says in `is_sound` [B] whose numbers were NaN or infinite, or whose grammar could not be followed. What
becomes of results and of such requests is the engine's business.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import prompt_logprobs
from engine.batch import Batch
from engine.model.cuda_graph import GraphedDecoder
from engine.model.decoder import Decoder
from engine.outputs import StepOutput
from engine.request import Request
from engine.rows import Rows, places
from engine.sampling.sampler import Logprobs, Sampler


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


class Readout:
    """Of one engine; keeps nothing of a step."""

    def __init__(self, decoder: Decoder | GraphedDecoder, sampler: Sampler, rows: Rows, device: torch.device) -> None:
        self._decoder = decoder
        self._sampler = sampler
        self._rows = rows
        self._device = device

    def score_prompts(self, batch: Batch, hidden: Tensor, is_sound: NDArray[np.bool_], output: StepOutput) -> None:
        """Log-probabilities of the prompt tokens that follow the batch's, where they are wanted, to `output`."""
        requests, row, num_tokens = batch.schedule
        for place in places(self._rows.scores_prompt[row]).tolist():
            request, first = requests[place], int(batch.wanted_start[place])
            position = request.num_computed_tokens + 1
            wanted = request.token_ids[position : min(position + int(num_tokens[place]), request.num_prompt_tokens)]
            if not wanted:
                continue
            rows = hidden[first : first + len(wanted)]
            num_top = request.prompt_work.num_logprobs
            scored = prompt_logprobs.compute(rows, wanted, position, num_top, self._decoder.logits)
            if scored is None:
                is_sound[place] = False
            else:
                output.prompt_logprobs.append((request, scored))

    def draw(self, batch: Batch, hidden: Tensor, is_sound: NDArray[np.bool_]) -> Drawn:
        """One token for each request whose tokens are all computed, unless it has all that it may."""
        requests, row, num_tokens = batch.schedule
        draws = (self._rows.num_uncomputed[row] == num_tokens) & ~self._rows.is_full(row)
        at = places(draws)
        if len(at) < len(row):
            idle = places(~draws)
            is_sound[idle] &= _rows_finite(self._last_rows(batch, hidden, idle))
            requests = [requests[place] for place in at.tolist()]
        if not requests:
            return Drawn(at, [], [], [])
        logits = self._decoder.logits(self._last_rows(batch, hidden, at))
        token_ids, logprobs = self._sampler.sample(logits, requests, row[at])
        is_sound[at] &= _rows_finite(logits)
        is_sound[at[self._sampler.failed]] = False
        drawn = Drawn(at, requests, token_ids, logprobs)
        return drawn if is_sound.all() else drawn.only(places(is_sound[at]))

    def embed(self, batch: Batch, hidden: Tensor, is_sound: NDArray[np.bool_]) -> None:
        """The hidden state of a prompt's last token, scaled to length 1, becomes the embedding of its request."""
        requests, row, num_tokens = batch.schedule
        is_done = self._rows.embeds[row] & (self._rows.num_uncomputed[row] == num_tokens) & is_sound
        at = places(is_done)
        if len(at):
            vectors = torch.nn.functional.normalize(self._last_rows(batch, hidden, at).float(), dim=-1)
            for place, vector in zip(at.tolist(), vectors.cpu().numpy(), strict=True):
                requests[place].embedding = vector.astype("<f4").tobytes()

    def _last_rows(self, batch: Batch, hidden: Tensor, at: NDArray[np.int64]) -> Tensor:
        """Of hidden [W, H], those of the last tokens of the requests at these places."""
        if len(at) == hidden.shape[0]:
            return hidden
        index = batch.wanted_start[at + 1].astype(np.int64) - 1
        return hidden[torch.from_numpy(index).to(self._device)]


def _rows_finite(rows: Tensor) -> NDArray[np.bool_]:
    """Whether each row of [B, N] is free of NaN and infinities, which all survive a sum."""
    finite: NDArray[np.bool_] = rows.sum(-1, dtype=torch.float32).isfinite().cpu().numpy()
    return finite
