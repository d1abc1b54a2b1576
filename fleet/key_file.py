"""The API key that commands use, from a key file as routers read it: plain keys, digests, JSON."""

import argparse
import json
import os
from pathlib import Path

from baton.errors import ConfigError

_DIGEST, _JSON = "sha256:", "{"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add --api-key-file."""
    text = "send the first key of this file (default: of the fleet's own key file, or else BATON_API_KEY)"
    parser.add_argument("--api-key-file", default="", metavar="FILE", help=text)


def asked_for(args: argparse.Namespace) -> str:
    """Return the file named by the flag or the environment, or an empty string."""
    return str(args.api_key_file) or os.environ.get("BATON_API_KEY_FILE", "")


def first_key(file: str) -> str:
    """Return the file's first key, empty if it has only digests. Raises ConfigError if it cannot be read."""
    return next(filter(None, map(_key, _entries(file))), "")


def key_of(file: str) -> str:
    """Return the first key of the file or, if there is no file or it has only digests, of BATON_API_KEY.

    Raises ConfigError if the file cannot be read, or the key cannot be sent.
    """
    key = (first_key(file) if file else "") or os.environ.get("BATON_API_KEY", "").partition(",")[0]
    if not (key.isprintable() and all(ord(char) < 256 for char in key)):
        source = file or "BATON_API_KEY"
        raise ConfigError(f"the API key in {source} cannot be sent: it has characters that no HTTP header can hold")
    return key


def begins_plain(file: str) -> bool:
    """Return whether the first entry is a plain key, which a shell can read. Raises ConfigError on read errors."""
    return not next(iter(_entries(file)), "").startswith((_DIGEST, _JSON))


def _entries(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--api-key-file: {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {file} is not UTF-8 text") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _key(entry: str) -> str:
    if entry.startswith(_DIGEST):
        return ""
    if not entry.startswith(_JSON):
        return entry
    try:
        return str(json.loads(entry).get("key", ""))
    except ValueError:
        return ""
