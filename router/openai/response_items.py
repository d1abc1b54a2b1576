"""The items of a response: what each looks like, and the events of its beginning, growth and end.

An event is its type and its fields; a `place` says which item of the response it is about.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

Event = tuple[str, dict[str, Any]]
Place = dict[str, Any]


class Item(ABC):
    """What items of all kinds have."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.status = "in_progress"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text as far as it came."""
        return "".join(self._pieces)

    @property
    def num_chars(self) -> int:
        """Characters of what the model wrote."""
        return len(self.text)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """As in the response's output."""

    @abstractmethod
    def opening(self, place: Place) -> list[Event]:
        """Events that follow the one by which it was added."""

    @abstractmethod
    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Take more text."""

    @abstractmethod
    def closing(self, place: Place) -> list[Event]:
        """Events that precede the one by which it is done."""


class _TextItem(Item):
    """An item with one part, which is text."""

    _event = ""  # what its events begin with

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self._logprobs: list[dict[str, Any]] = []

    @abstractmethod
    def _part(self) -> dict[str, Any]: ...

    def _about(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {}

    def opening(self, place: Place) -> list[Event]:
        """Its one part."""
        return [("response.content_part.added", {**place, "content_index": 0, "part": self._part()})]

    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Take more text."""
        self._pieces.append(text)
        self._logprobs.extend(logprobs)
        return f"{self._event}.delta", {**place, "content_index": 0, "delta": text, **self._about(logprobs)}

    def closing(self, place: Place) -> list[Event]:
        """All of the text."""
        at = {**place, "content_index": 0}
        return [
            (f"{self._event}.done", {**at, "text": self.text, **self._about(self._logprobs)}),
            ("response.content_part.done", {**at, "part": self._part()}),
        ]


class MessageItem(_TextItem):
    """What the reader reads."""

    _event = "response.output_text"

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}

    def _about(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"logprobs": list(logprobs)}

    def to_json(self) -> dict[str, Any]:
        """As in the response's output."""
        begun = bool(self._pieces) or self.status != "in_progress"
        content = [self._part()] if begun else []
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}


class ReasoningItem(_TextItem):
    """What the model thought."""

    _event = "response.reasoning_text"

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def to_json(self) -> dict[str, Any]:
        """As in the response's output."""
        content = [self._part()] if self._pieces else []
        return {"id": self.id, "type": "reasoning", "status": self.status, "summary": [], "content": content}


class CallItem(Item):
    """A call of a function."""

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        super().__init__(item_id)
        self._about = {"call_id": call_id, "name": name}

    def to_json(self) -> dict[str, Any]:
        """As in the response's output."""
        fields = {"id": self.id, "type": "function_call", "status": self.status}
        return {**fields, **self._about, "arguments": self.text}

    def opening(self, place: Place) -> list[Event]:
        """There is nothing to open."""
        return []

    def grow(self, place: Place, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """Take more of the arguments."""
        self._pieces.append(text)
        return "response.function_call_arguments.delta", {**place, "delta": text}

    def closing(self, place: Place) -> list[Event]:
        """All of the arguments."""
        fields = {**place, "name": self._about["name"], "arguments": self.text}
        return [("response.function_call_arguments.done", fields)]
