"""The running requests as a table, one row each, so that a step gathers arrays instead of walking Python objects.

A request has a row from when it is scheduled until it has stopped running and no step with it is under way. Block
tables and sampling parameters change rarely; progress changes with each step, for all rows at once.

Rows hold the progress of requests as of the end of all launched steps (`launch`), a `Request` what the host knows of it
(`land`). While no step is under way the two agree. A token that was drawn but is not known to the host is UNKNOWN.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baton.step_cost import StepShape
from engine.request import Request
from engine.sampling.logit_adjust import adjusts_logits

MIN_TEMPERATURE = 1e-5  # below it sampling is greedy: division by less could overflow
UNKNOWN = -1  # a last token that only the device has
_NO_STOP = -2
_NEVER = 2**62


class Schedule(NamedTuple):
    """What a step computes: for each request, in order, `num_tokens` tokens from the first uncomputed one on."""

    requests: list[Request]  # never modified; the same list from step to step while the same requests run
    rows: NDArray[np.int64]  # [B]
    num_tokens: NDArray[np.int64]  # [B]
    total: int  # sum of num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether it computes one token per request."""
        return self.total == len(self.requests)


class Advance(NamedTuple):
    """How a step changes the progress of its requests."""

    num_uncomputed: NDArray[np.int64]  # [B], uncomputed tokens of each request after the step
    changed: NDArray[np.int64]  # places of the requests for which that number changes


def places(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The indices where a mask is true. `numpy.flatnonzero` takes three times as long."""
    where: NDArray[np.int64] = mask.nonzero()[0]
    return where


class Rows:
    """A table of at most `num_rows` requests. All arrays are indexed by row."""

    def __init__(self, num_rows: int, max_blocks_per_request: int) -> None:
        self._free = list(range(num_rows))
        self.num_blocks: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # entries of block_tables that are set
        self.block_tables: NDArray[np.int32] = np.zeros((num_rows, max_blocks_per_request), np.int32)
        self.temperature: NDArray[np.float32] = np.zeros(num_rows, np.float32)
        self.top_p: NDArray[np.float32] = np.ones(num_rows, np.float32)
        self.top_k: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.min_p: NDArray[np.float32] = np.zeros(num_rows, np.float32)
        self.adjusts: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # logits are adjusted before sampling
        self.num_logprobs: NDArray[np.int64] = np.full(num_rows, -1, np.int64)
        self.seed: NDArray[np.uint64] = np.zeros(num_rows, np.uint64)

        self.num_prompt_tokens: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.num_tokens: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # prompt and output so far
        self.num_uncomputed: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # of them; 1 in plain decoding
        self.last_token: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.length_limit: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # num_tokens at which the request ends
        self.stop_token_ids: NDArray[np.int64] = np.full((num_rows, 1), _NO_STOP, np.int64)  # as wide as needed
        self.stretch_at: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # num_tokens beyond which its KV is useless
        self.rope_start: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # row of its position 0 in the rotary tables
        self.num_published: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # full blocks in the prefix cache
        self.prefill_only: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self.scores_prompt: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # wants its prompt's log-probabilities
        self.embeds: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self.is_new: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # has drawn no token on this node yet
        self.has_extras: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # wants more of a step than a token
        self.waits: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # the host must know all tokens before it draws
        self.num_pending: NDArray[np.int64] = np.zeros(num_rows, np.int64)  # steps under way that include this row
        self.has_left: NDArray[np.bool_] = np.zeros(num_rows, np.bool_)  # the results of those steps are to be dropped

    def take(self, request: Request) -> None:
        """Assign a row to the request, with its parameters, progress and blocks."""
        row = request.row = self._free.pop()
        sampling = request.sampling
        self.temperature[row] = sampling.temperature if sampling.temperature >= MIN_TEMPERATURE else 0
        self.top_p[row] = sampling.top_p
        self.top_k[row] = sampling.top_k
        self.min_p[row] = sampling.min_p
        self.seed[row] = sampling.seed
        self.adjusts[row] = adjusts_logits(sampling)
        self.waits[row] = self.adjusts[row] or sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
        self.has_left[row] = False
        self.num_logprobs[row] = sampling.num_logprobs
        self._take_progress(request)
        self.has_extras[row] = self.scores_prompt[row] or self.embeds[row] or self.num_logprobs[row] >= 0
        self.num_blocks[row] = 0
        self.append_blocks(request)

    def append_blocks(self, request: Request) -> None:
        """Add the blocks that the request has been given since."""
        row, known = request.row, int(self.num_blocks[request.row])
        self.block_tables[row, known : len(request.block_ids)] = request.block_ids[known:]
        self.num_blocks[row] = len(request.block_ids)

    def give_back(self, request: Request) -> None:
        """Free the row of a request that has stopped running."""
        if request.row >= 0:
            self._free.append(request.row)
            request.row = -1

    def shape(self, schedule: Schedule) -> StepShape:
        """The shape of a step that is about to run, for predicting its duration."""
        num_tokens = schedule.num_tokens
        before = self.num_tokens[schedule.rows] - self.num_uncomputed[schedule.rows]
        if schedule.is_decode:
            return StepShape(0, 0.0, schedule.total, int(np.add.reduce(before)))
        decodes = num_tokens == 1
        context = num_tokens * (before + num_tokens / 2)
        num_decoding = int(decodes.sum())
        return StepShape(
            schedule.total - num_decoding,
            float(context[~decodes].sum()),
            num_decoding,
            int(before[decodes].sum()),
        )

    def launch(self, schedule: Schedule, drawn: NDArray[np.int64]) -> Advance:
        """Record the launch of a step, in which the requests at the places `drawn` draw one token each."""
        row = schedule.rows
        before = self.num_uncomputed[row]
        after = before - schedule.num_tokens
        after[drawn] += 1
        self.num_uncomputed[row] = after
        self.num_tokens[row[drawn]] += 1
        self.last_token[row[drawn]] = UNKNOWN
        self.num_pending[row] += 1
        return Advance(after, places(after != before))

    def land(self, schedule: Schedule, advance: Advance, drawn: NDArray[np.int64], token_ids: Sequence[int]) -> None:
        """Record a step's results. `advance` is what `launch` returned; `token_ids` were drawn at places `drawn`."""
        row, requests = schedule.rows[drawn], schedule.requests
        self.last_token[row] = np.where(self.num_pending[row] == 0, token_ids, UNKNOWN)
        growing = requests if len(drawn) == len(requests) else [requests[place] for place in drawn.tolist()]
        for request, token_id in zip(growing, token_ids, strict=True):
            request.token_ids.append(token_id)
        for place in advance.changed.tolist():  # prompts only
            requests[place].num_uncomputed_tokens = int(advance.num_uncomputed[place])

    def are_stopped_by(self, row: NDArray[np.int64], token_ids: Sequence[int]) -> NDArray[np.bool_]:
        """Which of these rows end because their latest token, one each, is one of their stop tokens."""
        tokens = np.array(token_ids, np.int64)
        stopped: NDArray[np.bool_] = (self.stop_token_ids[row] == tokens[:, None]).any(1)
        return stopped

    def is_full(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these rows have reached their length limit."""
        return self.num_tokens[row] >= self.length_limit[row]

    def is_outgrown(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these rows have become too long for their rotary embedding, so that their KV is useless."""
        return self.num_tokens[row] > self.stretch_at[row]

    def check(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError unless the rows of these running requests, without pending steps, agree with them."""
        for request in requests:
            row = request.row
            if self.num_pending[row]:
                continue
            said = (int(self.num_tokens[row]), int(self.num_uncomputed[row]), int(self.last_token[row]))
            if said != (request.num_tokens, request.num_uncomputed_tokens, request.token_ids[-1]):
                raise RuntimeError(f"row {row} has {said}, which does not match request {request.request_id}")

    def _take_progress(self, request: Request) -> None:
        row = request.row
        self.num_prompt_tokens[row] = request.num_prompt_tokens
        self.num_tokens[row] = request.num_tokens
        self.num_uncomputed[row] = request.num_uncomputed_tokens
        self.last_token[row] = request.token_ids[-1]
        self.length_limit[row] = request.length_limit
        can_stretch = request.stretches_after and not request.is_stretched
        self.stretch_at[row] = request.stretches_after if can_stretch else _NEVER
        self.rope_start[row] = request.stretches_after * request.is_stretched
        self.num_published[row] = len(request.chain)
        self.prefill_only[row] = request.prefill_only
        self.scores_prompt[row] = request.prompt_work.num_logprobs >= 0
        self.embeds[row] = request.prompt_work.embeds
        self.is_new[row] = not request.has_begun
        stops = sorted(request.stop_token_ids)
        if len(stops) > self.stop_token_ids.shape[1]:
            wider = ((0, 0), (0, len(stops) - self.stop_token_ids.shape[1]))
            self.stop_token_ids = np.pad(self.stop_token_ids, wider, constant_values=_NO_STOP)
        self.stop_token_ids[row] = _NO_STOP
        self.stop_token_ids[row, : len(stops)] = stops
