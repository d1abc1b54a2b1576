"""Checked access to the fields of a config.json: every error names the file and the field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from baton.errors import CheckpointError

_MOST = 2**31 - 1  # of what is counted
_LARGEST = 1e30  # of numbers, so that products of a few are finite in fp32, or nearly


class Fields:
    """One config.json; what it leaves out is taken from its family's defaults."""

    def __init__(self, path: Path, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = {**defaults, **raw}  # a null is kept: it may say "none", where nothing said means a default

    def count(self, name: str, default: int | None = None, most: int = _MOST) -> int:
        """A positive integer; `default` where it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(f"{name} must be a positive integer, not {value!r}")
        if value > most:
            self.refuse(f"{name} {value} is more than {most}")
        return value

    def optional_count(self, name: str) -> int:
        """0 where it is null, missing or 0."""
        return 0 if self.raw.get(name) in (None, 0) else self.count(name)

    def number(self, name: str, default: float) -> float:
        """`default` where it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(f"{name} must be a number, not {value!r}")
        if not abs(value) <= _LARGEST:  # not a number either
            self.refuse(f"{name} {value!r} is no number below {_LARGEST}")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """A number above 0; `default` where it is null or missing."""
        value = self.number(name, default)
        if value < 1 / _LARGEST:
            self.refuse(f"{name} must be more than 0, not {value!r}")
        return value

    def flag(self, name: str) -> bool:
        """False where it is null or missing."""
        value = self.raw.get(name)
        if not isinstance(value, bool | None):
            self.refuse(f"{name} must be true or false, not {value!r}")
        return bool(value)

    def text(self, name: str, default: str) -> str:
        """`default` where it is null or missing."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            self.refuse(f"{name} must be a string, not {value!r}")
        return value

    def only(self, name: str, served: object) -> None:
        """CheckpointError where it is something else than null, missing or what is served."""
        value = self.raw.get(name)
        if value is not None and value != served:
            self.refuse(f"{name} {value!r} is not served in this architecture, only {served!r}")

    def strings(self, name: str) -> list[str]:
        """Empty where it is null or missing."""
        return self._list(name, str, "strings")

    def integers(self, name: str) -> list[int]:
        """Empty where it is null or missing."""
        return self._list(name, int, "integers")

    def mapping(self, name: str) -> dict[str, Any]:
        """Empty where it is null or missing."""
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
