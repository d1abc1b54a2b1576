"""The formats of answers for OpenAI's clients: whole ones, and the events of a stream.

Events are prebuilt except for their text, so that a token costs two concatenations and one encoding.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from baton.errors import BatonError
from router.http.error_format import error_json
from router.openai.logprobs_format import chat_logprobs
from router.openai.prompt_part import PromptPart
from router.openai.schema import StreamUsage
from router.openai.token_entry import TokenEntry

DONE = b"data: [DONE]\n\n"
_NO_USAGE = b',"usage":null}\n\n'  # cannot be part of a text, whose quotes are escaped

_encode = msgspec.json.encode


class TokenCounts(msgspec.Struct, frozen=True):
    """The usage of an answer, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Convert to OpenAI's `usage`."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


class ChoiceText(msgspec.Struct):
    """One choice of a whole answer, collected as it grows."""

    text: str = ""
    entries: list[TokenEntry] = []
    finish_reason: str = ""


class Format(Protocol):
    """The format of one answer. Events are complete, including `data: ` and the blank line."""

    prompts: Sequence[PromptPart]  # one per choice
    counts_each: bool  # whether every event must carry the usage, through `counted`; `around` is not used then

    def begin(self, index: int) -> bytes:
        """Return the event that opens a choice, or b"" if there is none."""

    def delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        """Return the events for new text of a choice, or b"" if none of it is visible yet."""

    def around(self, index: int) -> tuple[bytes, bytes] | None:
        """After `begin`: return what comes before and after the text in an event that contains only text.

        None if the choice's text cannot simply be passed through.
        """

    def end(self, index: int, finish_reason: str) -> bytes:
        """Return the events that end a choice."""

    def finish(self, counts: TokenCounts) -> bytes:
        """Return the last events of a stream, with the usage if it was asked for."""

    def failure(self, error: BatonError) -> bytes:
        """Return the last event of a stream that failed."""

    def whole(self, choices: Sequence[ChoiceText], counts: TokenCounts) -> bytes:
        """Return the body of an answer that is not streamed."""


def counted(events: bytes, counts: TokenCounts) -> bytes:
    """Return the events with the usage so far in each of them."""
    return events.replace(_NO_USAGE, b',"usage":%s}\n\n' % _encode(counts.to_json()))


class Frame:
    """The fields that all events of an answer share."""

    def __init__(self, kind: str, answer_id: str, model: str, created: int, *, stream_usage: StreamUsage) -> None:
        self._stream_usage = stream_usage
        self._fields = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._head = b"data: " + _encode(self._fields)[:-1] + b',"choices":['
        self._tail = b"]" + (_NO_USAGE if stream_usage else b"}\n\n")

    def around(self, before: bytes, after: bytes) -> tuple[bytes, bytes]:
        """Return the beginning and end of an event whose choice begins and ends with these."""
        return self._head + before, after + self._tail

    def event(self, choice: bytes) -> bytes:
        """Return an event with one choice, which is given as JSON."""
        return b"%s%s%s" % (self._head, choice, self._tail)

    def finish(self, counts: TokenCounts) -> bytes:
        """Return the last events: the usage, if it was asked for, and `[DONE]`."""
        if not self._stream_usage:
            return DONE
        return b'%s],"usage":%s}\n\n%s' % (self._head, _encode(counts.to_json()), DONE)

    def failure(self, error: BatonError) -> bytes:
        """Return the event for an error. No `[DONE]` follows it."""
        return b"data: %s\n\n" % error_json(error)

    def whole(self, kind: str, choices: list[dict[str, Any]], counts: TokenCounts, **more: Any) -> bytes:
        """Return the body of an answer that is not streamed."""
        return _encode({**self._fields, "object": kind, "choices": choices, "usage": counts.to_json(), **more})


class ChoicesFormat:
    """The base of formats whose answers consist of choices."""

    _kind = ""  # `object` of the events

    def __init__(
        self,
        answer_id: str,
        model: str,
        created: int,
        prompts: Sequence[PromptPart] = (),
        *,
        stream_usage: StreamUsage = StreamUsage.NONE,
    ) -> None:
        self.prompts = prompts
        self.counts_each = stream_usage is StreamUsage.EACH
        self._frame = Frame(self._kind, answer_id, model, created, stream_usage=stream_usage)
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self.finish = self._frame.finish
        self.failure = self._frame.failure

    def around(self, index: int) -> tuple[bytes, bytes] | None:
        """See `Format`."""
        return self._around[index]


class ChatFormat(ChoicesFormat):
    """The format of /v1/chat/completions."""

    _kind = "chat.completion.chunk"

    def begin(self, index: int) -> bytes:
        """Return the event with the role."""
        before, after = b'{"index":%d,"delta":{"content":"' % index, b'"},"logprobs":null,"finish_reason":null}'
        self._around[index] = self._frame.around(before, after)
        return self._frame.event(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        )

    def delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        """See `Format`."""
        if not entries:
            before, after = self._around[index]
            return before + _encode(text)[1:-1] + after
        choice = {"index": index, "delta": {"content": text}, "logprobs": chat_logprobs(entries)}
        return self._frame.event(_encode({**choice, "finish_reason": None}))

    def end(self, index: int, finish_reason: str) -> bytes:
        """See `Format`."""
        return self._frame.event(
            b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"}' % (index, finish_reason.encode())
        )

    def whole(self, choices: Sequence[ChoiceText], counts: TokenCounts) -> bytes:
        """See `Format`."""
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "refusal": None, **message},
                "logprobs": chat_logprobs(choice.entries) if choice.entries else None,
                "finish_reason": finish_reason,
            }
            for index, choice in enumerate(choices)
            for message, finish_reason in [self._message(index, choice)]
        ]
        prompt_logprobs = self.prompts[0].logprobs if self.prompts else None
        more = {} if prompt_logprobs is None else {"prompt_logprobs": prompt_logprobs}
        return self._frame.whole("chat.completion", listed, counts, **more)

    def _message(self, index: int, choice: ChoiceText) -> tuple[dict[str, Any], str]:
        """Return the fields of a choice's message, and its finish reason."""
        return {"content": choice.text}, choice.finish_reason
