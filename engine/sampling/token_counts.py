"""How often each token has occurred in a request, for penalties: updated as the request grows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """The distinct tokens of prompt and output, and how often each occurs in the output."""

    def __init__(self, prompt: Sequence[int]) -> None:
        distinct = np.unique(np.array(prompt, np.int64))
        self._num_distinct = len(distinct)
        self._num_outputs = 0
        self._token_ids = distinct
        self._counts: NDArray[np.int64] = np.zeros(len(distinct), np.int64)
        self._place = {token_id: place for place, token_id in enumerate(distinct.tolist())}

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The distinct tokens so far; a view, valid until the next `catch_up`."""
        return self._token_ids[: self._num_distinct]

    @property
    def output_counts(self) -> NDArray[np.int64]:
        """How often each of `token_ids` occurs in the output."""
        return self._counts[: self._num_distinct]

    def catch_up(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Count the output tokens that were added to `token_ids` since the last call."""
        for token_id in token_ids[num_prompt_tokens + self._num_outputs :]:
            place = self._place_of(token_id)  # may replace the array
            self._counts[place] += 1
        self._num_outputs = len(token_ids) - num_prompt_tokens

    def _place_of(self, token_id: int) -> int:
        place = self._place.setdefault(token_id, self._num_distinct)
        if place == self._num_distinct:
            if place == len(self._token_ids):
                spare = np.zeros(max(place, 64), np.int64)
                self._token_ids = np.concatenate((self._token_ids, spare))
                self._counts = np.concatenate((self._counts, spare))
            self._token_ids[place] = token_id
            self._num_distinct += 1
        return place
