"""The format of /v1/responses: items, and the events for their creation.

A whole answer is built in the same way as a stream, with its events discarded.
"""

import secrets
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from baton.errors import BatonError
from router.openai.answer_format import ChoiceText, TokenCounts
from router.openai.logprobs_format import chat_logprobs
from router.openai.message_format import mint_call_id
from router.openai.parsing.parts import CallArguments, CallBegin, CallEnd, Content, Parser, Part, Reasoning
from router.openai.prompt_part import PromptPart
from router.openai.response_items import CallItem, Item, MessageItem, ReasoningItem
from router.openai.responses_schema import ResponsesBody, TextOptions
from router.openai.token_entry import TokenEntry

_encode = msgspec.json.encode


class ResponsesFormat:
    """The format of one answer, which also collects its items as the output grows."""

    def __init__(self, body: ResponsesBody, prompts: Sequence[PromptPart], parser: Parser, calls_style: str) -> None:
        self.prompts = prompts
        self.counts_each = False
        self._parser = parser
        self._calls_style = calls_style
        self._fields = _fields(body)
        self._items: list[Item] = []
        self._entries: list[TokenEntry] = []  # of text that the parser holds back
        self._num_chars = 0  # of the output so far
        self._finish_reason = ""
        self._num_events = 0

    def begin(self, index: int) -> bytes:
        """Return the events with the empty response."""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        """Return the events for the parts that are certain now. With `entries`, tokens are parsed one by one."""
        edges = [0, *(entry.offset - self._num_chars for entry in entries), len(text)]
        self._num_chars += len(text)
        events = [*map(self._take, self._parser.push(text[: edges[1]]))]
        for entry, (begin, end) in zip(entries, pairwise(edges[1:]), strict=True):
            self._entries.append(entry)
            events += map(self._take, self._parser.push(text[begin:end]))
        return b"".join(events)

    def around(self, index: int) -> tuple[bytes, bytes] | None:
        """See `Format`. Always None: each event carries its own sequence number."""
        return None

    def end(self, index: int, finish_reason: str) -> bytes:
        """Return the events for what the parser held back, and for the end of the last item."""
        self._finish_reason = finish_reason
        events = b"".join(map(self._take, self._parser.finish()))
        if not self._items:
            events += self._open(MessageItem(_mint("msg")))
        return events + self._close("completed" if finish_reason == "stop" else "incomplete")

    def finish(self, counts: TokenCounts) -> bytes:
        """Return the event with the complete response."""
        status = self._status
        return self._event(f"response.{status}", response=self._response(status, counts))

    def failure(self, error: BatonError) -> bytes:
        """Return the event with the failed response, as far as it was generated."""
        response = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=response)

    def whole(self, choices: Sequence[ChoiceText], counts: TokenCounts) -> bytes:
        """See `Format`."""
        self.delta(0, choices[0].text, choices[0].entries)
        self.end(0, choices[0].finish_reason)
        return _encode(self._response(self._status, counts))

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _take(self, part: Part) -> bytes:
        entries, self._entries = self._entries, []
        match part:
            case Content(text=text):
                logprobs = chat_logprobs(_of_text(entries, text))["content"] if entries else []
                return self._into(MessageItem, "msg") + self._grow(text, logprobs)
            case Reasoning(text=text):
                return self._into(ReasoningItem, "rs") + self._grow(text)
            case CallBegin(name=name):
                return self._close() + self._open(CallItem(_mint("fc"), mint_call_id(self._calls_style), name))
            case CallArguments(text=text):
                return self._grow(text)
            case CallEnd():
                return self._close(ends_call=True)

    def _into(self, kind: type[MessageItem] | type[ReasoningItem], prefix: str) -> bytes:
        if self._items and type(self._items[-1]) is kind and self._items[-1].status == "in_progress":
            return b""
        return self._close() + self._open(kind(_mint(prefix)))

    def _open(self, item: Item) -> bytes:
        self._items.append(item)
        added = self._event("response.output_item.added", **self._at(), item=item.to_json())
        return added + b"".join(self._event(*event) for event in item.opening(self._place()))

    def _grow(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        item = self._items[-1]
        return self._event(*item.grow(self._place(), text, logprobs))

    def _close(self, status: str = "completed", *, ends_call: bool = False) -> bytes:
        """End the current item, if it is open. A call that is closed other than by its own end is incomplete."""
        if not self._items or self._items[-1].status != "in_progress":
            return b""
        item = self._items[-1]
        item.status = "incomplete" if isinstance(item, CallItem) and not ends_call else status
        events = b"".join(self._event(*event) for event in item.closing(self._place()))
        return events + self._event("response.output_item.done", **self._at(), item=item.to_json())

    def _at(self) -> dict[str, Any]:
        return {"output_index": len(self._items) - 1}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1].id, **self._at()}

    def _event(self, kind: str, fields: dict[str, Any] | None = None, **more: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._num_events, **(fields or {}), **more}
        self._num_events += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode(data))

    def _response(self, status: str, counts: TokenCounts | None = None) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        output = [item.to_json() for item in self._items]
        usage = None if counts is None else self._usage(counts)
        return self._fields | {"status": status, "incomplete_details": incomplete, "output": output, "usage": usage}

    def _usage(self, counts: TokenCounts) -> dict[str, Any]:
        """Return the usage. Reasoning tokens are not counted but estimated by reasoning's share of the characters."""
        sizes = [(item.num_chars, isinstance(item, ReasoningItem)) for item in self._items]
        num_chars = sum(size for size, _ in sizes) or 1
        thought = counts.num_output_tokens * sum(size for size, thinks in sizes if thinks) // num_chars
        return {
            "input_tokens": counts.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": counts.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": counts.num_prompt_tokens + counts.num_output_tokens,
        }


def _of_text(entries: list[TokenEntry], text: str) -> list[TokenEntry]:
    """Return the last entries, whose tokens make up `text`. Those before them are of markup."""
    num_left, first = len(text.encode()), len(entries)
    while first and num_left > 0:
        first -= 1
        num_left -= len(entries[first].token)
    return entries[first:]


def _mint(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _fields(body: ResponsesBody) -> dict[str, Any]:
    """Return the fields that a response repeats from its request, whose sampling defaults have been filled in."""
    reasoning, text = body.reasoning, body.text
    return {
        "id": _mint("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "background": False,
        "error": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": (text.format if text else None) or {"type": "text"}} | _verbosity(text),
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _verbosity(text: TextOptions | None) -> dict[str, Any]:
    return {"verbosity": text.verbosity} if text is not None and text.verbosity else {}
