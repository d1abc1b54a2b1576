"""One choice of an answer: a job's sink that turns tokens into deltas of text and log-probabilities.

Stop strings and stop tokens are never shown, nor are incomplete characters or text that may become a stop string.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Protocol

from baton.errors import BatonError
from baton.request import FinishReason, SamplingParams
from baton.text.detokenizer import TokenTexts
from baton.text.stop_strings import StopStrings
from router.http.outlet import Insert
from router.job import Handle, PromptResult, TokenLogprobs, Usage
from router.openai.token_entry import TokenEntry, finite

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Writes the answer. Called in the event loop; must not block."""

    def on_prompt(self, choice: "Choice", result: PromptResult) -> None:
        """The prompt work of this choice is done."""

    def on_begin(self, choice: "Choice") -> None:
        """The first token is here; its text may still be held back."""

    def inserter(self, choice: "Choice") -> Insert | None:
        """After `on_begin`: return a fast function for text escaped as in a JSON string, if deltas contain only text.

        The function returns False if it cannot take the text now; the text then goes through `on_delta`.
        """

    def on_delta(self, choice: "Choice", text: str, entries: list[TokenEntry]) -> None:
        """New text. `entries` are those of the tokens that begin in it, if log-probabilities were asked for."""

    def on_end(self, choice: "Choice") -> None:
        """The choice is complete: `finish_reason` and `usage` are set."""

    def on_failure(self, error: BatonError) -> None:
        """The choice cannot be completed."""


class Choice:
    """The sink of one job. A stop token that ends the output is not part of its text."""

    def __init__(
        self,
        index: int,
        listener: Listener,
        token_texts: TokenTexts,
        sampling: SamplingParams,
        stops: tuple[str, ...],
        *,
        at_start: bool,
    ) -> None:
        """`at_start`: the text stands alone, like a message, and does not continue a prompt.

        The logprobs of a continuation include the token that ends it: clients that score prompts generate one token and
        take the last entry for it.
        """
        self.index = index
        self.handle: Handle | None = None
        self.num_tokens = 0
        self.finish_reason = ""
        self.usage = Usage(num_prompt_tokens=0)
        self._listener = listener
        self._texts = token_texts
        self._detokenizer = token_texts.detokenizer(at_start=at_start)
        self._tells_end = not at_start
        self._stops = StopStrings(stops) if stops else None
        self._hidden_ids = frozenset(sampling.stop_token_ids)
        self._min_tokens = sampling.min_tokens
        self._hidden: tuple[int, TokenLogprobs | None] | None = None  # the last token, if it may end the output
        self._entries: list[TokenEntry] = []  # of text that is held back
        self._pieces = token_texts.pieces_without(self._stops.firsts) if self._stops else token_texts.pieces
        self._insert: Insert | None = None
        self._short: Insert | None = None  # `_insert`, while the next token can take the fast path
        self._num_chars = 0  # characters produced
        self._num_sent = 0  # characters sent

    def on_prompt(self, result: PromptResult) -> None:
        """See `Sink`."""
        if not self.finish_reason:
            self._listener.on_prompt(self, result)

    def on_tokens(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """See `Sink`. Most single tokens take the fast path, which only looks up their text and inserts it."""
        try:
            short = self._short
            if short is not None and len(tokens) == 1 and logprobs is None:
                text = self._pieces[tokens[0]]
                if text is not None and tokens[0] not in self._hidden_ids and short(text):
                    self.num_tokens += 1
                    return
            self._on_tokens(tokens, logprobs)
            self._short = self._find_short()
        except Exception:
            self._fail()

    def on_finish(self, reason: FinishReason, usage: Usage) -> None:
        """See `Sink`."""
        if self.finish_reason:
            return
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            self._listener.on_failure(BatonError("the generation was aborted"))
            return
        self.usage = usage
        try:
            self._finish("stop" if reason is FinishReason.STOP else "length")
        except Exception:
            self._fail()

    def on_error(self, error: BatonError) -> None:
        """See `Sink`."""
        if not self.finish_reason:
            self._listener.on_failure(error)

    def cancel(self) -> None:
        """Drop the job. Idempotent."""
        self._insert = self._short = None
        if self.handle is not None:
            self.handle.cancel()

    def pause(self) -> None:
        """Pause the job."""
        if self.handle is not None and not self.finish_reason:
            self.handle.pause()

    def resume(self) -> None:
        """Resume the job."""
        if self.handle is not None:
            self.handle.resume()

    def _fail(self) -> None:
        """An edge: this answer fails, the router keeps running."""
        _log.exception("cannot convert the output to text")
        self._listener.on_failure(BatonError("internal error"))

    def _find_short(self) -> Insert | None:
        """Return the inserter if the next token can take the fast path, else None."""
        if self.finish_reason or self._hidden is not None or not (self._stops is None or self._stops.is_settled):
            return None
        if self._insert is None:
            self._insert = self._listener.inserter(self)
        return self._insert if self._detokenizer.is_settled else None

    def _on_tokens(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        if self.finish_reason:
            return
        if not self.num_tokens:
            self._listener.on_begin(self)
        if logprobs is None and self._stops is None and self._hidden is None and self._hidden_ids.isdisjoint(tokens):
            self.num_tokens += len(tokens)  # equivalent to the code below, in a third of the time
            text = "".join(map(self._detokenizer.push, tokens))
            if text:
                self._listener.on_delta(self, text, [])
            return
        text = ""
        for token_id, row in self._visible(tokens, logprobs):
            piece, found = self._through_stops(self._push(token_id, row))
            text += piece
            if found:
                self._stop(text)
                return
        self._send(text)

    def _visible(
        self, tokens: list[int], logprobs: list[TokenLogprobs] | None
    ) -> Iterator[tuple[int, TokenLogprobs | None]]:
        """Yield the tokens that are certain to be shown: one that may end the output waits for its successor."""
        rows: Iterable[TokenLogprobs | None] = logprobs if logprobs is not None else [None] * len(tokens)
        for token_id, row in zip(tokens, rows, strict=True):
            if self._hidden is not None:
                yield self._hidden
                self._hidden = None
            self.num_tokens += 1
            if token_id in self._hidden_ids:
                self._hidden = (token_id, row)
            else:
                yield token_id, row

    def _push(self, token_id: int, row: TokenLogprobs | None) -> str:
        if row is not None:
            self._entries.append(self._entry(token_id, row, self._detokenizer.num_lost(token_id)))
        text = self._detokenizer.push(token_id)
        self._num_chars += len(text)
        return text

    def _through_stops(self, text: str) -> tuple[str, bool]:
        if self._stops is None:
            return text, False
        return self._stops.push(text, may_end=self.num_tokens > self._min_tokens)

    def _send(self, text: str) -> None:
        if not text:
            return
        self._num_sent += len(text)
        entries = [entry for entry in self._entries if entry.offset < self._num_sent]
        if entries:
            self._entries = self._entries[len(entries) :]
        self._listener.on_delta(self, text, entries)

    def _stop(self, text: str) -> None:
        """End the choice: a stop string was found after `text`."""
        if self.handle is not None:
            self.usage = self.handle.usage
            self.handle.cancel()
        self.finish_reason = "stop"
        self._send(text)
        self._listener.on_end(self)

    def _finish(self, reason: str) -> None:
        self._short = None
        text = self._push(*self._hidden) if self._hidden is not None and reason == "length" else ""
        rest = self._detokenizer.finish()
        self._num_chars += len(rest)
        if self._hidden is not None and reason != "length" and self._tells_end:
            token_id, row = self._hidden
            self._entries += [self._entry(token_id, row)] if row is not None else []
        text, found = self._through_stops(text + rest)
        if found:
            reason = "stop"
        elif self._stops is not None:
            text += self._stops.finish()
        self.finish_reason = reason
        self._num_sent += len(text)
        entries = [entry for entry in self._entries if not found or entry.offset < self._num_sent]
        if text or entries:
            self._listener.on_delta(self, text, entries)
        self._listener.on_end(self)

    def _entry(self, token_id: int, row: TokenLogprobs, num_lost: int = 0) -> TokenEntry:
        token_bytes = self._texts.token_bytes
        top = [(token_bytes(i), finite(p)) for i, p in zip(row.top_token_ids, row.top_logprobs, strict=True)]
        return TokenEntry(token_bytes(token_id), finite(row.logprob), top, self._num_chars + num_lost)
