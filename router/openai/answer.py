"""An answer with all its choices: collected into one body, or streamed as it comes.

Nothing is sent before the first token, so that any error until then is a proper HTTP error. After that, an error is
sent as one event, and no `[DONE]` follows.
"""

import asyncio
import time
from abc import ABC, abstractmethod

import msgspec

from baton.errors import BatonError
from baton.telemetry.exposition import exemplar
from router.http import metrics as http_metrics
from router.http.error_format import Header
from router.http.exchange import Exchange
from router.http.outlet import Insert
from router.job import PromptResult
from router.openai.answer_format import ChoiceText, Format, TokenCounts, counted
from router.openai.choice import Choice
from router.openai.token_entry import TokenEntry
from router.recent import RECENT

_STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Answer(ABC):
    """An answer, which listens to its choices. `num_prompt_tokens` counts each prompt once."""

    def __init__(self, exchange: Exchange, form: Format, num_prompt_tokens: int, choices_per_prompt: int) -> None:
        self.choices: list[Choice] = []
        self.ended = False
        self.error: BatonError | None = None
        self.first_token_s: float | None = None  # on the monotonic clock
        self._exchange = exchange
        self._format = form
        self._num_prompt_tokens = num_prompt_tokens
        self._choices_per_prompt = choices_per_prompt
        exchange.sender.source = self

    def counts(self) -> TokenCounts:
        """Return the usage so far. If choices share a prompt, only the first one's cached tokens count."""
        num_output_tokens = num_cached_tokens = 0
        for choice in self.choices:
            num_output_tokens += choice.num_tokens
            if choice.index % self._choices_per_prompt == 0:
                num_cached_tokens += choice.usage.num_cached_tokens
        return TokenCounts(self._num_prompt_tokens, num_output_tokens, num_cached_tokens)

    def timings(self) -> dict[str, float]:
        """Return `ttft_s` and the known phases of the first choice, in seconds."""
        ttft = {} if self.first_token_s is None else {"ttft_s": self.first_token_s - self._exchange.arrived_s}
        return ttft | (self.choices[0].usage.timings if self.choices else {})

    def drop(self) -> None:
        """Cancel all choices, because nobody needs the rest. Idempotent. Also part of `Source`."""
        self.ended = True
        for choice in self.choices:
            choice.cancel()

    def pause(self) -> None:
        """See `Source`: pause all choices."""
        for choice in self.choices:
            choice.pause()

    def resume(self) -> None:
        """See `Source`: resume all choices."""
        for choice in self.choices:
            choice.resume()

    def on_prompt(self, choice: Choice, result: PromptResult) -> None:
        """See `Listener`: pass the result to the format, which shows it."""
        self._format.prompts[choice.index].take(result)

    def on_begin(self, choice: Choice) -> None:
        """See `Listener`: note the time of the answer's first token."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic()
            asyncio.get_running_loop().call_soon(self._record_ttft, self.first_token_s - self._exchange.arrived_s)

    @abstractmethod
    def inserter(self, choice: Choice) -> Insert | None:
        """See `Listener`."""

    @abstractmethod
    def on_delta(self, choice: Choice, text: str, entries: list[TokenEntry]) -> None:
        """See `Listener`."""

    def on_end(self, choice: Choice) -> None:
        """See `Listener`: record metrics. The last choice completes the answer."""
        http_metrics.observe_phases(choice.usage.timings)
        if self.first_token_s is not None and choice.num_tokens > 1:
            gap_s = (time.monotonic() - self.first_token_s) / (choice.num_tokens - 1)
            http_metrics.TIME_PER_OUTPUT_TOKEN.observe(gap_s, exemplar(self._exchange.request_id))
            RECENT.tpot(gap_s)
        self._choice_ended(choice)

    def on_failure(self, error: BatonError) -> None:
        """Fail the answer, because one of its choices has failed."""
        if self.ended:
            return
        self.error = error
        self.drop()
        if self._exchange.status:
            self._exchange.sender.write(self._format.failure(error), more=False)
        else:
            self._exchange.send_error(error)

    @abstractmethod
    def _choice_ended(self, choice: Choice) -> None: ...

    def _record_ttft(self, ttft_s: float) -> None:
        """Record the time to first token. Called one turn of the event loop later, so as not to delay the token."""
        http_metrics.TIME_TO_FIRST_TOKEN.observe(ttft_s, exemplar(self._exchange.request_id))
        RECENT.ttft(ttft_s)
        self._exchange.timeline.mark("first token sent")

    @property
    def _complete(self) -> bool:
        return all(choice.finish_reason for choice in self.choices)


class WholeAnswer(Answer):
    """An answer that is sent when it is complete."""

    def __init__(self, exchange: Exchange, form: Format, num_prompt_tokens: int, choices_per_prompt: int) -> None:
        super().__init__(exchange, form, num_prompt_tokens, choices_per_prompt)
        self._texts: dict[int, ChoiceText] = {}
        self._pieces: dict[int, list[bytes]] = {}  # escaped as in a JSON string

    def inserter(self, choice: Choice) -> Insert | None:
        """Return a function that collects text, escaped as in a JSON string."""
        pieces = self._pieces.setdefault(choice.index, [])

        def insert(text: bytes) -> bool:
            pieces.append(text)
            return True

        return insert

    def on_delta(self, choice: Choice, text: str, entries: list[TokenEntry]) -> None:
        """Collect the text, and the entries of its tokens."""
        self._pieces.setdefault(choice.index, []).append(msgspec.json.encode(text)[1:-1])
        if entries:
            self._text(choice).entries.extend(entries)

    def _choice_ended(self, choice: Choice) -> None:
        collected = self._text(choice)
        collected.text = msgspec.json.decode(b'"%b"' % b"".join(self._pieces.pop(choice.index, ())), type=str)
        collected.finish_reason = choice.finish_reason
        if self._complete and not self.ended:
            body = self._format.whole([self._texts[c.index] for c in self.choices], self.counts())
            self.ended = True
            self._exchange.send(200, body)

    def _text(self, choice: Choice) -> ChoiceText:
        return self._texts.setdefault(choice.index, ChoiceText(entries=[]))


class StreamedAnswer(Answer):
    """An answer that is streamed."""

    _held = b""  # the last event of a choice's text, sent together with the choice's end, which follows at once

    def on_begin(self, choice: Choice) -> None:
        """Send the headers and the first event at once, before there is any text."""
        super().on_begin(choice)
        if self.ended:
            return
        opening = self._with_usage(self._format.begin(choice.index))
        if not self._exchange.status:
            self._exchange.start(200, _STREAM_HEADERS, opening)
        elif opening:
            self._exchange.sender.write(opening)

    def inserter(self, choice: Choice) -> Insert | None:
        """Return a function that sends text, if all further events of the choice differ only in their text."""
        around = None if self.ended or self._format.counts_each else self._format.around(choice.index)
        return around and self._exchange.sender.inserter(*around)

    def on_delta(self, choice: Choice, text: str, entries: list[TokenEntry]) -> None:
        """Send the text or, if the choice has ended, hold it for the write that contains the end."""
        if self.ended:
            return
        event = self._with_usage(self._format.delta(choice.index, text, entries))
        if choice.finish_reason:
            self._held = event
        elif event:
            self._exchange.sender.write(event)

    def _choice_ended(self, choice: Choice) -> None:
        if self.ended:
            return
        if not choice.num_tokens:
            self.on_begin(choice)
        events = self._held + self._with_usage(self._format.end(choice.index, choice.finish_reason))
        self._held = b""
        if self._complete:
            events += self._format.finish(self.counts())
            self.ended = True
        self._exchange.sender.write(events, more=not self.ended)

    def _with_usage(self, events: bytes) -> bytes:
        return counted(events, self.counts()) if self._format.counts_each else events
