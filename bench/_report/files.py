"""Report files: checked before anything is measured, and written as strictly valid JSON."""

import os
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import ConfigError


def check(*names: str | None) -> None:
    """Raise ConfigError if one of the output files cannot be written, before any work is done."""
    for name in filter(None, names):
        path = Path(name).absolute()
        if path.is_dir():
            raise ConfigError(f"cannot write to {name}: it is a folder")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write to {name}: folder {path.parent} does not exist")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"cannot write to {name}: no permission")


def write_json(path: str, report: Any) -> None:
    """Write a report. NaN (a percentile of no requests) becomes null, because JSON has no NaN."""
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
