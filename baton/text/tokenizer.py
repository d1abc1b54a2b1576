"""Converts text to token ids with the model's tokenizer.json.

Special tokens only act as such where the model's chat template wrote them. What a client wrote is always encoded as
plain text, even `<|im_start|>`. Calls release the GIL while they encode, so long texts should be encoded in a thread.
`chat_template` renders the text, `detokenizer` converts outputs back.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from baton import other_formats
from baton.errors import CheckpointError, InvalidRequest
from baton.model_dir import read_json, read_text
from baton.text.control_tokens import ControlTokens, Marks, Piece

_ANCHORS = ("\n", "a", "0", ".")  # characters to put before a text; one of them does not merge with it into one token
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, decoder: dict[str, Any] | None = None) -> None:
        """`decoder` is the field `decoder` of the tokenizer.json."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.decoder = decoder or {}
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.control_tokens = ControlTokens(added[i].content for i in self.special_ids)
        self.num_tokens: int = backend.get_vocab_size(with_added_tokens=True)
        self.max_token_chars = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
        self._disguisable = backend.normalizer is not None and any(added[i].normalized for i in self.special_ids)
        self._prefix, self._suffix = self._frame()

    @classmethod
    def load(cls, model_dir: Path) -> "Tokenizer":
        """Read tokenizer.json, and later additions from tokenizer_config.json. Raises CheckpointError."""
        path = model_dir / "tokenizer.json"
        text = read_text(path, required=False)
        if text is None:
            raise CheckpointError(f"{model_dir} holds no {path.name}: {other_formats.about_tokenizer(model_dir)}")
        spec = read_json(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise CheckpointError(f"{path}: {error}") from None
        _add_tokens(backend, model_dir / "tokenizer_config.json")
        decoder = spec.get("decoder")
        return cls(backend, decoder if isinstance(decoder, dict) else {})

    def encode(self, text: str, *, framed: bool = True, max_tokens: int | None = None) -> list[int]:
        """Encode a client's text. `framed`: add the tokenizer's own tokens around it, usually a BOS.

        `max_tokens`: keep only the first tokens of a longer text; the frame stays whole.
        """
        token_ids = self._encode_pieces(self.control_tokens.split(text))
        prefix, suffix = (self._prefix, self._suffix) if framed else ([], [])
        if max_tokens is not None:
            token_ids = token_ids[: max(0, max_tokens - len(prefix) - len(suffix))]
        return [*prefix, *token_ids, *suffix]

    def encode_chat(self, rendered: str, marks: Marks | None = None) -> list[int]:
        """Encode a rendered conversation, in which `marks` enclose the special tokens that clients wrote.

        Without marks, every special token in it is the template's. No BOS is added: templates write their own.
        """
        if marks is None:
            return self._encode_pieces([Piece(rendered, False)])
        return self._encode_pieces(self.control_tokens.split_marked(rendered, marks))

    def decode(self, token_ids: list[int], *, special: bool = False) -> str:
        """Decode a whole output at once. `special`: include special tokens. Streams use a `Detokenizer` instead."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=not special)
        return text

    def token(self, token_id: int) -> str | None:
        """Return a token in the vocabulary's own spelling; None if there is no such id."""
        entry: str | None = self._backend.id_to_token(token_id)
        return entry

    def token_id(self, content: str) -> int | None:
        """Return the id of a token given in the vocabulary's own spelling; None if there is no such token."""
        token_id: int | None = self._backend.token_to_id(content)
        return token_id

    def to_json(self) -> str:
        """Return the whole tokenizer, added tokens included, in the format of tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def token_ids(self) -> set[int]:
        """Return all ids that stand for a token; the model's vocabulary may be larger."""
        return set(self._backend.get_vocab(with_added_tokens=True).values())

    def _encode_pieces(self, pieces: list[Piece]) -> list[int]:
        token_ids: list[int] = []
        for i, piece in enumerate(pieces):
            if piece.quoted:
                token_ids += self._encode_quoted(piece.text, at_start=i == 0)
            else:
                token_ids += self._encode_checked(piece.text, at_start=i == 0)
        return token_ids

    def _encode_checked(self, text: str, at_start: bool) -> list[int]:
        token_ids = self._encode(text) if at_start else _continued(text, self._encode)
        if self._disguisable and self._num_special(token_ids) > self.control_tokens.count(text):
            raise InvalidRequest("the text contains a special token of the model in another spelling")
        return token_ids

    def _num_special(self, token_ids: list[int]) -> int:
        return sum(map(self.special_ids.__contains__, token_ids))

    def _encode(self, text: str) -> list[int]:
        # encode_batch_fast, unlike encode, releases the GIL
        token_ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return token_ids

    def _encode_quoted(self, text: str, at_start: bool = False) -> list[int]:
        """Encode a special token's spelling as plain text, by the tokenizer's pipeline without added tokens."""
        token_ids = self._bare(text) if at_start else _continued(text, self._bare)
        if not self.special_ids.isdisjoint(token_ids):  # the vocabulary contains the spelling as an ordinary entry, too
            if len(text) == 1:
                raise InvalidRequest("the text contains a special token of the model")
            return self._encode_quoted(text[:1], at_start) + self._encode_quoted(text[1:])
        return token_ids

    def _bare(self, text: str) -> list[int]:
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the tokens that the tokenizer adds before and after a text."""
        bare = self._encode("a")
        framed: list[int] = self._backend.encode_batch_fast(["a"], add_special_tokens=True)[0].ids
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []


def _continued(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Encode text that follows other text: at the start, SentencePiece tokenizers would put a space before it."""
    for anchor in _ANCHORS:
        before, token_ids = encode(anchor), encode(anchor + text)
        if token_ids[: len(before)] == before:
            return token_ids[len(before) :]
    return encode(text)


def _add_tokens(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Add the tokens of tokenizer_config.json that tokenizer.json lacks, or has with other flags."""
    listed = read_json(path, required=False).get("added_tokens_decoder", {})
    try:
        wanted = {int(i): token for i, token in listed.items()}
        known = {i: _key(token) for i, token in backend.get_added_tokens_decoder().items()}
        for token_id in sorted(wanted):
            raw = wanted[token_id]
            flags = {name: bool(raw[name]) for name in _FLAGS if name in raw}
            token = tokenizers.AddedToken(raw["content"], **flags)
            if known.get(token_id) != _key(token):
                backend.add_tokens([token])
            if backend.token_to_id(raw["content"]) != token_id:
                raise CheckpointError(f"{path}: token {token_id} has another id in tokenizer.json")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: added_tokens_decoder must map token ids to tokens") from None


def _key(token: tokenizers.AddedToken) -> tuple[str | bool, ...]:
    return (token.content, *(getattr(token, name) for name in _FLAGS))
