"""Checked access to the fields of a config.json: every error names the file and the field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from baton.errors import CheckpointError

_MOST = 2**31 - 1  # largest count
_FLOAT32 = torch.finfo(torch.float32)  # kernels take numbers as fp32, where more is infinite and less is 0


class Fields:
    """The fields of one config.json; those that it omits come from its family's defaults."""

    def __init__(self, path: Path, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = {**defaults, **raw}  # null is kept: it may mean "none", while a missing field means the default

    def count(self, name: str, default: int | None = None, most: int = _MOST) -> int:
        """Return a positive integer; `default` if it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(f"{name} must be a positive integer, not {value!r}")
        if value > most:
            self.refuse(f"{name} {value} is more than {most}")
        return value

    def optional_count(self, name: str) -> int:
        """Return a positive integer, or 0 if it is null, missing or 0."""
        return 0 if self.raw.get(name) in (None, 0) else self.count(name)

    def number(self, name: str, default: float) -> float:
        """Return a number; `default` if it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(f"{name} must be a number, not {value!r}")
        if not abs(value) <= _FLOAT32.max:  # not a number either
            self.refuse(f"{name} {value!r} is not a finite number in float32")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """Return a number above 0; `default` if it is null or missing."""
        value = self.number(name, default)
        if value < _FLOAT32.tiny:
            self.refuse(f"{name} must be more than 0, not {value!r}")
        return value

    def flag(self, name: str) -> bool:
        """Return a flag; False if it is null or missing."""
        value = self.raw.get(name)
        if not isinstance(value, bool | None):
            self.refuse(f"{name} must be true or false, not {value!r}")
        return bool(value)

    def text(self, name: str, default: str) -> str:
        """Return a string; `default` if it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            self.refuse(f"{name} must be a string, not {value!r}")
        return value

    def only(self, name: str, served: object) -> None:
        """Raise CheckpointError unless the field is null, missing, or `served`."""
        value = self.raw.get(name)
        if value is not None and value != served:
            self.refuse(f"{name} {value!r} is not served in this architecture, only {served!r}")

    def strings(self, name: str) -> list[str]:
        """Return a list of strings; empty if it is null or missing."""
        return self._list(name, str, "strings")

    def integers(self, name: str) -> list[int]:
        """Return a list of integers; empty if it is null or missing."""
        return self._list(name, int, "integers")

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object; empty if it is null or missing."""
        value = self.raw.get(name) or {}
        if not isinstance(value, dict):
            self.refuse(f"{name} must be an object, not {value!r}")
        return value

    def _list(self, name: str, kind: type, plural: str) -> list[Any]:
        value = self.raw.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            self.refuse(f"{name} must be a list of {plural}, not {value!r}")
        return value

    def refuse(self, what: str) -> NoReturn:
        """Raise a CheckpointError that names the file."""
        raise CheckpointError(f"{self.path}: {what}")
