"""The format of chat answers whose output is parsed into reasoning, tool calls and content.

Answers that need no parsing use `answer_format.ChatFormat`.
"""

import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from router.openai.answer_format import ChatFormat, ChoiceText
from router.openai.logprobs_format import chat_logprobs
from router.openai.parsing.parts import CallArguments, CallBegin, CallEnd, Content, Parser, Part, Reasoning
from router.openai.prompt_part import PromptPart
from router.openai.schema import StreamUsage
from router.openai.token_entry import TokenEntry

_ALPHANUMERIC = string.ascii_letters + string.digits
_encode = msgspec.json.encode


class Call(msgspec.Struct):
    """A tool call, collected as it grows."""

    id: str
    name: str
    arguments: str = ""
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the call in the format of a message's `tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Collected(msgspec.Struct):
    """The parts of an output, by kind."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = []

    @property
    def called(self) -> bool:
        """Whether there are calls, all of them complete."""
        return bool(self.calls) and all(call.whole for call in self.calls)


def collect(parser: Parser, text: str, mint: Callable[[], str]) -> Collected:
    """Parse a whole output; `mint` makes the ids of calls."""
    collected = Collected(calls=[])
    for part in [*parser.push(text), *parser.finish()]:
        match part:
            case Content(text=text):
                collected.content += text
            case Reasoning(text=text):
                collected.reasoning += text
            case CallBegin(name=name):
                collected.calls.append(Call(mint(), name))
            case CallArguments(text=text):
                collected.calls[-1].arguments += text
            case CallEnd():
                collected.calls[-1].whole = True
    return collected


def mint_call_id(calls_style: str) -> str:
    """Mint the id of a call. Mistral's templates only accept ids of nine alphanumeric characters."""
    if calls_style == "mistral":
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


class MessageFormat(ChatFormat):
    """The format of /v1/chat/completions with parsing. A call's name is sent first, then its arguments in pieces."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        created: int,
        prompts: Sequence[PromptPart],
        parser: Callable[[], Parser],
        calls_style: str,
        *,
        stream_usage: StreamUsage = StreamUsage.NONE,
    ) -> None:
        """`parser` makes a new parser, for each choice."""
        super().__init__(answer_id, model, created, prompts, stream_usage=stream_usage)
        self._make_parser = parser
        self._calls_style = calls_style
        self._parsers: dict[int, Parser] = {}
        self._around_reasoning: dict[int, tuple[bytes, bytes]] = {}
        self._num_calls: dict[int, int] = {}
        self._num_whole_calls: dict[int, int] = {}
        self._entries: dict[int, list[TokenEntry]] = {}  # of text that the parser holds back

    def begin(self, index: int) -> bytes:
        """Return the event with the role."""
        before = b'{"index":%d,"delta":{"reasoning_content":"' % index
        self._around_reasoning[index] = self._frame.around(before, b'"},"logprobs":null,"finish_reason":null}')
        return super().begin(index)

    def delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        """Return the events for the parts that are certain now."""
        parser = self._parsers.get(index)
        if parser is None:
            parser = self._parsers[index] = self._make_parser()
        if entries:
            self._entries.setdefault(index, []).extend(entries)
        return self._events(index, parser.push(text))

    def around(self, index: int) -> tuple[bytes, bytes] | None:
        """See `Format`: not None only once the parser passes all further text through as content."""
        parser = self._parsers.get(index)
        return super().around(index) if parser is not None and parser.passes else None

    def end(self, index: int, finish_reason: str) -> bytes:
        """Return the events for what the parser held back, and for the end."""
        parser = self._parsers.get(index)
        events = self._events(index, parser.finish()) if parser else b""
        if entries := self._entries.get(index):
            events += self._event(index, Content(""), entries)
        num_calls = self._num_calls.get(index, 0)
        reason = _reason(finish_reason, called=0 < num_calls == self._num_whole_calls.get(index))
        return events + super().end(index, reason)

    def _events(self, index: int, parts: Sequence[Part]) -> bytes:
        shown = [part for part in parts if not isinstance(part, CallEnd)]
        self._num_whole_calls[index] = self._num_whole_calls.get(index, 0) + len(parts) - len(shown)
        return b"".join([self._event(index, part, self._entries.pop(index, ())) for part in shown])

    def _event(self, index: int, part: Part, entries: Sequence[TokenEntry]) -> bytes:
        if not entries and isinstance(part, Content):
            return super().delta(index, part.text, ())
        if not entries and isinstance(part, Reasoning):
            before, after = self._around_reasoning[index]
            return before + _encode(part.text)[1:-1] + after
        logprobs = chat_logprobs(entries) if entries else None
        choice = {"index": index, "delta": self._delta(index, part), "logprobs": logprobs, "finish_reason": None}
        return self._frame.event(_encode(choice))

    def _delta(self, index: int, part: Part) -> dict[str, Any]:
        match part:
            case Content(text=text):
                return {"content": text}
            case Reasoning(text=text):
                return {"reasoning_content": text}
            case CallBegin(name=name):
                number = self._num_calls[index] = self._num_calls.get(index, 0) + 1
                call = Call(mint_call_id(self._calls_style), name)
                return {"tool_calls": [{"index": number - 1, **call.to_json()}]}
            case CallArguments(text=text):
                number = self._num_calls[index]
                return {"tool_calls": [{"index": number - 1, "function": {"arguments": text}}]}
            case CallEnd():
                return {}

    def _message(self, index: int, choice: ChoiceText) -> tuple[dict[str, Any], str]:
        collected = collect(self._make_parser(), choice.text, lambda: mint_call_id(self._calls_style))
        message: dict[str, Any] = {"content": collected.content or (None if collected.calls else "")}
        if collected.reasoning:
            message["reasoning_content"] = collected.reasoning
        if collected.calls:
            message["tool_calls"] = [call.to_json() for call in collected.calls]
        return message, _reason(choice.finish_reason, called=collected.called)


def _reason(finish_reason: str, *, called: bool) -> str:
    return "tool_calls" if called and finish_reason == "stop" else finish_reason
