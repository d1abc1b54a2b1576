"""Reports as files: looked after before anything is measured, written as JSON that every reader takes."""

import os
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import ConfigError


def check(*names: str | None) -> None:
    """Of files that are to be written in the end; ConfigError where one cannot be, rather than after all the work."""
    for name in filter(None, names):
        path = Path(name).absolute()
        if path.is_dir():
            raise ConfigError(f"cannot write to {name}: it is a folder")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write to {name}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"cannot write to {name}: no permission")


def write_json(path: str, report: Any) -> None:
    """What has no value (a percentile of no requests) is null: NaN is no JSON."""
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
