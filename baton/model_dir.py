"""Reads the small files of a Hugging Face model directory. Every error names the file.

This covers what tokenization and limits need; the engine reads the model's architecture and weights itself.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton import other_formats
from baton.errors import CheckpointError

_MOST_TOKENS = 2**31 - 1
_RANGES = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, 10),
}


@dataclass(frozen=True)
class SamplingDefaults:
    """Values for parameters that a request leaves out: OpenAI's, unless generation_config.json recommends others."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class ModelFacts:
    """What a router needs to know about a model besides its tokenizer."""

    vocab_size: int  # token ids sent to a node must be below this
    max_model_len: int  # tokens; 0 if the model names no limit
    eos_token_ids: frozenset[int]
    sampling: SamplingDefaults = SamplingDefaults()


def load_facts(model_dir: Path) -> ModelFacts:
    """Read the facts from config.json and generation_config.json. Raises CheckpointError."""
    config = read_json(model_dir / "config.json")
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    return ModelFacts(
        vocab_size=_count(model_dir, config, "vocab_size"),
        max_model_len=_count(model_dir, config, "max_position_embeddings"),
        eos_token_ids=eos_token_ids(model_dir),
        sampling=_recommended(model_dir),
    )


def eos_token_ids(model_dir: Path) -> frozenset[int]:
    """Return the tokens that end a generation, from config.json and, if it exists, generation_config.json."""
    ids: set[int] = set()
    for path, config in _eos_sources(model_dir):
        value = config.get("eos_token_id")
        given = [i for i in (value if isinstance(value, list) else [value]) if i is not None]
        if not all(isinstance(i, int) for i in given):
            raise CheckpointError(f"{path}: eos_token_id is neither a token id nor a list of them: {value!r}")
        ids.update(i for i in given if i >= 0)
    return frozenset(ids)


def _eos_sources(model_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    path = model_dir / "config.json"
    config = read_json(path)
    yield path, config
    text = config.get("text_config")
    if isinstance(text, dict):
        yield path, text
    path = model_dir / "generation_config.json"
    yield path, read_json(path, required=False)


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if the file is missing and not required."""
    text = read_text(path, required=required)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_text(path: Path, *, required: bool = True) -> str | None:
    """Return the text of a UTF-8 file, or None if it is missing and not required."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not required:
            return None
        where = f"{path.parent} holds no {path.name}" if path.parent.is_dir() else f"{path.parent} is not a directory"
        raise CheckpointError(f"{where}: a Hugging Face model directory is needed") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if text.startswith(other_formats.LFS_POINTER):
        raise CheckpointError(other_formats.about_pointer(path))
    return text


def _recommended(model_dir: Path) -> SamplingDefaults:
    """Return the sampling defaults that generation_config.json recommends; its `do_sample` is ignored."""
    path = model_dir / "generation_config.json"
    config = read_json(path, required=False)
    given = {name: config[name] for name in _RANGES if config.get(name) is not None}
    for name, value in given.items():
        low, high = _RANGES[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise CheckpointError(f"{path}: {name} must be a number from {low} to {high}, not {value!r}")
    top_k = int(given.pop("top_k", 0))
    return SamplingDefaults(top_k=max(top_k, 0), **{name: float(value) for name, value in given.items()})


def _count(model_dir: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
        raise CheckpointError(f"{model_dir / 'config.json'}: {name} must be a number of tokens, not {value!r}")
    return value
