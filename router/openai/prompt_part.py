"""What a choice shows of its prompt: the text (`echo`), and the log-probabilities of its tokens.

There are two formats for the latter: OpenAI's legacy one, in which `logprobs` lists the echoed prompt's tokens before
those of the output, and vLLM's `prompt_logprobs`. The first token has none in either, since nothing precedes it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from baton.text.detokenizer import TokenTexts
from router.job import PromptResult, PromptWork
from router.openai.token_entry import TokenEntry, finite


class _Row(NamedTuple):
    """A token's own log-probability, and those of the likeliest tokens at its position."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # the likeliest first


class PromptPart:
    """The prompt's part in one choice. The numbers of alternatives are -1 if no log-probabilities are wanted."""

    def __init__(
        self,
        token_ids: Sequence[int],
        texts: TokenTexts,
        *,
        echo: str = "",
        num_echo_logprobs: int = -1,
        num_prompt_logprobs: int = -1,
    ) -> None:
        self.echo = echo
        self.entries: list[TokenEntry] = []  # for OpenAI's format
        self.logprobs: list[dict[str, Any] | None] | None = None  # vLLM's
        self._token_ids = token_ids
        self._texts = texts
        self._num_echo_logprobs = num_echo_logprobs
        self._num_prompt_logprobs = num_prompt_logprobs

    def work(self, max_tokens: int) -> PromptWork | None:
        """Return the prompt work for a node, or None if there is none. With `max_tokens` 0, it is all of the job."""
        num_logprobs = max(self._num_echo_logprobs, self._num_prompt_logprobs)
        return PromptWork(num_logprobs=num_logprobs) if num_logprobs >= 0 or not max_tokens else None

    def take(self, result: PromptResult) -> None:
        """Take the result of the prompt work."""
        if self._num_echo_logprobs >= 0:
            self.entries = self._entries(list(_rows(result, self._token_ids, self._num_echo_logprobs)))
        if self._num_prompt_logprobs >= 0:
            rows = _rows(result, self._token_ids, self._num_prompt_logprobs)
            self.logprobs = [None, *map(self._described, rows)]

    def _entries(self, rows: list[_Row]) -> list[TokenEntry]:
        token_bytes = self._texts.token_bytes
        offsets = self._offsets()
        entries = [TokenEntry(token_bytes(self._token_ids[0]), None, [], offsets[0])]
        for row, offset in zip(rows, offsets[1:], strict=True):
            top = [(token_bytes(token_id), finite(logprob)) for token_id, logprob in row.top]
            entries.append(TokenEntry(token_bytes(row.token_id), finite(row.logprob), top, offset))
        return entries

    def _offsets(self) -> list[int]:
        """Return the offset of each token in the echo, in characters."""
        detokenizer, offset, offsets = self._texts.detokenizer(at_start=True), 0, []
        for token_id in self._token_ids:
            offsets.append(min(offset + detokenizer.num_lost(token_id), len(self.echo)))
            offset += len(detokenizer.push(token_id))
        return offsets

    def _described(self, row: _Row) -> dict[str, Any]:
        ranked = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(row.top, 1)}
        ranked[row.token_id] = (row.logprob, row.rank)
        return {str(token_id): self._token(token_id, *about) for token_id, about in ranked.items()}

    def _token(self, token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        text = self._texts.token_bytes(token_id).decode(errors="replace")
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": text}


def _rows(result: PromptResult, token_ids: Sequence[int], num_top: int) -> Iterator[_Row]:
    """Yield the rows of all tokens except the first, with at most `num_top` alternatives each."""
    for part in result.logprobs:
        kept = min(num_top, part.num_top)
        for i, (logprob, rank) in enumerate(zip(part.logprobs, part.ranks, strict=True)):
            first = i * part.num_top
            ids = part.top_token_ids[first : first + kept]
            top = list(zip(ids, part.top_logprobs[first : first + kept], strict=True))
            yield _Row(token_ids[part.position + i], logprob, rank, top)
