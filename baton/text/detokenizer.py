"""Converts a stream of token ids to text: no incomplete characters, and in all the same text as decoding at once.

Tokens of byte-level and SentencePiece tokenizers stand for bytes, so each costs one look-up. For tokenizers with other
decoders, a small window of tokens is decoded again at each step. Stop strings are found by `stop_strings`.

There is one exception: if a SentencePiece model emits byte tokens that are not valid UTF-8, decoding at once replaces
the whole run, while a stream has shown its valid beginning already and keeps it.
"""

import re
from codecs import utf_8_decode
from collections.abc import Callable, Collection
from itertools import takewhile
from typing import Any, Protocol

import msgspec

from baton.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
_MAX_WAIT_TOKENS = 6  # text is held back no longer: a character has 4 bytes at most


class Detokenizer(Protocol):
    """Converts one output to text."""

    def push(self, token_id: int) -> str:
        """Add a token and return the new text that is certain now, which may be empty."""

    def num_lost(self, token_id: int) -> int:
        """Count the U+FFFD that a push of this token would return first, for an incomplete character held back."""

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is held back or to be cut off, so that a token's `TokenTexts.pieces` may be used instead."""


class TokenTexts:
    """What each token of a tokenizer stands for. Shared by all outputs, and filled as tokens occur."""

    def __init__(self, tokenizer: Tokenizer, shown: Collection[str] = ()) -> None:
        """`shown` are the special tokens that appear as text in outputs; all others are left out."""
        self._tokenizer = tokenizer
        self._hidden_ids = tokenizer.special_ids - {tokenizer.token_id(content) for content in shown}
        self._to_bytes, self._num_stripped = _conversion(tokenizer.decoder)
        self._bytes = _Cache(self._bytes_of)
        self._texts = _Cache(self._text_of)
        self.pieces: dict[int, bytes | None] = _Cache(self._piece_of)
        """By token id: its text as escaped in a JSON string; None if it has none, or that depends on other tokens."""

    def detokenizer(self, *, at_start: bool) -> Detokenizer:
        """Return a detokenizer for a new output. `at_start`: the output does not continue another text."""
        if self._to_bytes is None:
            return _WindowDetokenizer(self._tokenizer)
        return _ByteDetokenizer(self._bytes, self._texts, self._num_stripped if at_start else 0)

    def pieces_without(self, characters: Collection[str]) -> dict[int, bytes | None]:
        """Return `pieces` with None for every token whose text contains one of these characters."""
        barred = frozenset(characters)
        return _Cache(lambda i: self.pieces[i] if barred.isdisjoint(self._texts[i] or "") else None)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token by itself; for a special token, its name."""
        if token_id in self._tokenizer.special_ids:
            return (self._tokenizer.token(token_id) or "").encode()
        if self._to_bytes is None:
            return self._tokenizer.decode([token_id]).encode()
        token: bytes = self._bytes[token_id]
        return token

    def _bytes_of(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden_ids else self._tokenizer.token(token_id)
        return b"" if token is None or self._to_bytes is None else self._to_bytes(token)

    def _text_of(self, token_id: int) -> str | None:
        try:
            return self._bytes_of(token_id).decode()
        except UnicodeDecodeError:
            return None

    def _piece_of(self, token_id: int) -> bytes | None:
        text = None if self._to_bytes is None else self._texts[token_id]
        return msgspec.json.encode(text)[1:-1] if text else None


class _Cache(dict[int, Any]):
    def __init__(self, compute: Callable[[int], Any]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, token_id: int) -> Any:
        value = self[token_id] = self._compute(token_id)
        return value


class _ByteDetokenizer:
    def __init__(self, token_bytes: _Cache, texts: _Cache, num_stripped: int) -> None:
        self._token_bytes = token_bytes
        self._texts = texts
        self._num_stripped = num_stripped  # leading spaces to be removed from the first text
        self._rest = b""  # the first bytes of an incomplete character

    @property
    def is_settled(self) -> bool:
        return not (self._rest or self._num_stripped)

    def push(self, token_id: int) -> str:
        text: str | None = None if self._rest else self._texts[token_id]
        if text is None:
            data = self._rest + self._token_bytes[token_id]
            text, num_used = utf_8_decode(data, "replace", False)
            self._rest = data[num_used:]
        if self._num_stripped and text:
            num_spaces = len(text) - len(text.lstrip(" "))
            text = text[min(self._num_stripped, num_spaces) :]
            self._num_stripped = 0
        return text

    def num_lost(self, token_id: int) -> int:
        try:
            utf_8_decode(self._rest + self._token_bytes[token_id][:1], "strict", False)
        except UnicodeDecodeError:
            return len(self._rest.decode(errors="replace"))
        return 0

    def finish(self) -> str:
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


class _WindowDetokenizer:
    """Decodes the newest tokens together with those before them, since the text of a token may depend on these."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_read = 0  # tokens of the window whose text has been returned

    @property
    def is_settled(self) -> bool:
        return False

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        waiting = len(self._window) - self._num_read < _MAX_WAIT_TOKENS
        return self._read(hold_back=waiting)

    def num_lost(self, token_id: int) -> int:
        decode, window = self._tokenizer.decode, self._window
        both = zip(decode(window), decode([*window, token_id]), strict=False)
        num_same = sum(1 for _ in takewhile(lambda chars: chars[0] == chars[1], both))
        return max(0, num_same - len(decode(window[: self._num_read])))

    def finish(self) -> str:
        return self._read(hold_back=False)

    def _read(self, hold_back: bool) -> str:
        before = self._tokenizer.decode(self._window[: self._num_read])
        text = self._tokenizer.decode(self._window)
        if hold_back and (len(text) <= len(before) or text.endswith(_REPLACEMENT)):
            return ""
        del self._window[: self._num_read]
        self._num_read = len(self._window)
        return text[len(before) :]


def _conversion(decoder: dict[str, Any]) -> tuple[Callable[[str], bytes] | None, int]:
    """Choose how to convert single tokens to bytes, by the type of the tokenizer's decoder.

    Returns (None, 0) if a token's bytes depend on other tokens; else the conversion, and how many leading spaces are
    removed from an output.
    """
    steps: list[dict[str, Any]] = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    types = [step.get("type") for step in steps]
    if types == ["ByteLevel"]:
        return _from_byte_level, 0
    if types == ["Metaspace"] and steps[0].get("replacement") == "▁":
        return _from_metaspace, 0 if steps[0].get("prepend_scheme") == "never" else 1
    replaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    if types[:2] == ["Replace", "ByteFallback"] and steps[0] == replaces and types[2:] in (["Fuse"], ["Fuse", "Strip"]):
        strip: dict[str, Any] = steps[3] if len(steps) == 4 else {"content": " "}
        if strip.get("content") == " " and not strip.get("stop"):
            return _from_sentencepiece, int(strip.get("start", 0))
    return None, 0


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:  # an added token, which is spelled as plain text
        return token.encode()


def _from_metaspace(token: str) -> bytes:
    return token.replace("▁", " ").encode()


def _from_sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else _from_metaspace(token)


def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's encoding of bytes: printable ones as themselves, the others as characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
