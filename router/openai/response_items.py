"""The output items of /v1/responses: their JSON, and the events for their start, growth and end.

An event is a pair of type and fields. A `place` holds the fields that identify the item in the response.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

Event = tuple[str, dict[str, Any]]
Place = dict[str, Any]


class Item(ABC):
    """The base of all items."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.status = "in_progress"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def num_chars(self) -> int:
        """The length of the text, in characters."""
        return len(self.text)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the item as it appears in the response's `output`."""

    @abstractmethod
    def opening(self, place: Place) -> list[Event]:
        """Return the events that follow `response.output_item.added`."""

    @abstractmethod
    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Append text, and return the event for it."""

    @abstractmethod
    def closing(self, place: Place) -> list[Event]:
        """Return the events that precede `response.output_item.done`."""


class _TextItem(Item):
    """An item with a single part, which is text."""

    _event = ""  # prefix of its event types

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self._logprobs: list[dict[str, Any]] = []

    @abstractmethod
    def _part(self) -> dict[str, Any]: ...

    def _about(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {}

    def opening(self, place: Place) -> list[Event]:
        """See `Item`."""
        return [("response.content_part.added", {**place, "content_index": 0, "part": self._part()})]

    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """See `Item`."""
        self._pieces.append(text)
        self._logprobs.extend(logprobs)
        return f"{self._event}.delta", {**place, "content_index": 0, "delta": text, **self._about(logprobs)}

    def closing(self, place: Place) -> list[Event]:
        """See `Item`."""
        at = {**place, "content_index": 0}
        return [
            (f"{self._event}.done", {**at, "text": self.text, **self._about(self._logprobs)}),
            ("response.content_part.done", {**at, "part": self._part()}),
        ]


class MessageItem(_TextItem):
    """The assistant's message."""

    _event = "response.output_text"

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}

    def _about(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"logprobs": list(logprobs)}

    def to_json(self) -> dict[str, Any]:
        """See `Item`."""
        begun = bool(self._pieces) or self.status != "in_progress"
        content = [self._part()] if begun else []
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}


class ReasoningItem(_TextItem):
    """The model's reasoning."""

    _event = "response.reasoning_text"

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def to_json(self) -> dict[str, Any]:
        """See `Item`."""
        content = [self._part()] if self._pieces else []
        return {"id": self.id, "type": "reasoning", "status": self.status, "summary": [], "content": content}


class CallItem(Item):
    """A function call."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        super().__init__(item_id)
        self._about = {"call_id": call_id, "name": name}

    def to_json(self) -> dict[str, Any]:
        """See `Item`."""
        fields = {"id": self.id, "type": "function_call", "status": self.status}
        return {**fields, **self._about, "arguments": self.text}

    def opening(self, place: Place) -> list[Event]:
        """See `Item`: there are no such events."""
        return []

    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """See `Item`. The text is that of the arguments."""
        self._pieces.append(text)
        return "response.function_call_arguments.delta", {**place, "delta": text}

    def closing(self, place: Place) -> list[Event]:
        """See `Item`."""
        fields = {**place, "name": self._about["name"], "arguments": self.text}
        return [("response.function_call_arguments.done", fields)]
