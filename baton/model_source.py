"""Resolves `--model` to a folder on disk and the names that clients may use.

Only configuration, tokenizer and safetensors files are downloaded from the hub: never code, never pickles.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from baton import other_formats
from baton.errors import CheckpointError, ConfigError
from baton.process.settings import ModelFlags

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "examples" / "pydoc_chat" / "model"
DEFAULT_NAME = "pydoc-chat"
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "*.safetensors",
    "model.safetensors.index.json",
)
NO_HUB_FILES = ("consolidated*",)  # the same weights again, in the layout of Mistral's own code
Flags = TypeVar("Flags", bound=ModelFlags)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """A checkpoint on the local disk, and the names under which it is served."""

    path: Path
    names: tuple[str, ...]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model can answer chat requests."""
        if (self.path / "chat_template.jinja").is_file():
            return True
        try:
            return bool(json.loads((self.path / "tokenizer_config.json").read_bytes()).get("chat_template"))
        except (OSError, ValueError):
            return False


def complete(flags: Flags) -> Flags:
    """Return the flags with the model's folder and names filled in. Raises as `resolve`."""
    model = resolve(flags.model, flags.served_model_name)
    return dataclasses.replace(flags, model=str(model.path), served_model_name=model.names)


def resolve(model: str, names: tuple[str, ...] = ()) -> Model:
    """Return the checkpoint that `--model` names: a folder, a hub id, or the default model if it is empty.

    Raises CheckpointError if there is none, ConfigError if a download fails.
    """
    if not model:
        return Model(_checked(DEFAULT_MODEL, _NO_DEFAULT), names or (DEFAULT_NAME,))
    path = Path(model).expanduser().absolute()
    if path.is_dir():
        return Model(
            _checked(path, f"{path} holds no config.json: {other_formats.about_weights(path)}"),
            names or (path.name,),
        )
    if path.is_file():
        raise CheckpointError(f"{path} is a file: --model needs a directory with config.json and safetensors")
    if _HUB_ID.fullmatch(model):
        return Model(_download(model), names or (model,))
    raise CheckpointError(f"no such model: {model} is neither a folder nor a hub id (like Qwen/Qwen3-0.6B)")


_NO_DEFAULT = (
    f"the default model is missing from {DEFAULT_MODEL}: train it with `python examples/pydoc_chat/train.py`, "
    "or name another one with --model"
)


def _checked(path: Path, otherwise: str) -> Path:
    if not (path / "config.json").is_file():
        raise CheckpointError(otherwise)
    return path


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES), ignore_patterns=list(NO_HUB_FILES)))
    except RepositoryNotFoundError:
        raise CheckpointError(f"the hub has no model {hub_id} (if it is gated: set HF_TOKEN)") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{hub_id} is not in the local cache and the hub cannot be reached: go online, or give --model a folder"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"cannot download {hub_id}: {type(error).__name__}") from None
    return _checked(path, f"the hub's {hub_id} holds no config.json, so it is not a Hugging Face checkpoint")
