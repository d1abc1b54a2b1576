"""The vocabulary of a checkpoint as llguidance knows it: the bytes that tokens stand for, and what ends an output."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import llguidance

from baton.errors import CheckpointError
from baton.text.tokenizer import Tokenizer


class GrammarTokens(NamedTuple):
    """Of one model."""

    tokenizer: llguidance.LLTokenizer
    token_ids: set[int]  # that stand for something


def load(model_dir: str | Path, vocab_size: int, eos_token_ids: Collection[int]) -> GrammarTokens:
    """Read the tokenizer for a model of `vocab_size`. Raises CheckpointError where grammars cannot be had with it."""
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
    """Its tokenizer.json, less the added tokens that have no row in the model."""
    text = tokenizer.to_json()
    if max(tokenizer.token_ids(), default=-1) < vocab_size:
        return text
    spec = json.loads(text)
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < vocab_size]
    return json.dumps(spec)
