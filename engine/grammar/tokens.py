"""The vocabulary of a checkpoint for llguidance: the bytes of each token, and the tokens that end an output."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import llguidance

from baton.errors import CheckpointError
from baton.text.tokenizer import Tokenizer


class GrammarTokens(NamedTuple):
    """The vocabulary of one model."""

    tokenizer: llguidance.LLTokenizer
    token_ids: set[int]  # the tokens that have a text


def load(model_dir: str | Path, vocab_size: int, eos_token_ids: Collection[int]) -> GrammarTokens:
    """Read the tokenizer for a model of `vocab_size`. Raises CheckpointError if it cannot be used for grammars."""
    ends = sorted(token_id for token_id in eos_token_ids if token_id < vocab_size)
    if not ends:
        raise CheckpointError("the model names no end-of-sequence token")
    tokenizer = Tokenizer.load(Path(model_dir))
    try:
        wrapped = llguidance.LLTokenizer(_within(tokenizer, vocab_size), n_vocab=vocab_size, eos_token=ends)
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{Path(model_dir) / 'tokenizer.json'}: {error}") from None
    return GrammarTokens(wrapped, tokenizer.token_ids())


def _within(tokenizer: Tokenizer, vocab_size: int) -> str:
    """The text of tokenizer.json, without added tokens that are beyond the model's vocabulary."""
    text = tokenizer.to_json()
    if max(tokenizer.token_ids(), default=-1) < vocab_size:
        return text
    spec = json.loads(text)
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < vocab_size]
    return json.dumps(spec)
