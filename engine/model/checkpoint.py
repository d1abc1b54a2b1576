"""Reads tensors of a checkpoint from memory-mapped safetensors files, single or sharded.

However a checkpoint is broken, the error is a CheckpointError that names the file, and the tensor if there is one.
`engine.model.weights` decides which tensors a model needs.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from baton import other_formats
from baton.errors import CheckpointError
from baton.model_dir import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LANGUAGE_MODEL = "language_model."  # prefix of the language model's tensors in a model of text and images
_IN_MODEL = "model."  # before it in the names of transformers 5, which do not repeat it after it
FLOATS = ("F32", "F16", "BF16")


class Checkpoint:
    """The tensors of a model directory, by the names that they have in a text-only model."""

    def __init__(self, model_dir: str | Path) -> None:
        self._dir = Path(model_dir)
        self._shards: dict[Path, Any] = {}
        self._file_of = self._read_index()
        self._asked_for: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._file_of

    @property
    def files(self) -> list[Path]:
        """All shards, sorted by name."""
        return sorted(set(self._file_of.values()))

    def num_values(self, values_per_word: int = 1) -> int:
        """The number of values that all tensors represent: two per byte of packed 4-bit weights and none for their
        scales, `values_per_word` per int32 word."""
        num_values = 0
        for name, path in self._file_of.items():
            part = self._slice(path, name)
            held = {"U8": 0 if name.endswith("_scales") else 2, "I32": values_per_word}.get(part.get_dtype(), 1)
            num_values += held * math.prod(part.get_shape())
        return num_values

    def tensor(
        self, name: str, shape: Sequence[int], types: Sequence[str] = FLOATS, *, reshaped: bool = False
    ) -> Tensor:
        """Return the tensor of that name. Raises CheckpointError unless it has that shape and one of `types`.

        Types are named as in safetensors; values of FLOATS must be finite. The result is a view of the file, valid
        while that is mapped. `reshaped`: the tensor may be stored in any shape with as many values.
        """
        name = self._stored(name)
        path = self._file_of.get(name)
        if path is None:
            self.refuse_missing(name)
        part = self._slice(path, name)
        found = part.get_shape()
        if list(found) != list(shape) and not (reshaped and math.prod(found) == math.prod(shape)):
            raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}, config.json implies {list(shape)}")
        if part.get_dtype() not in types:
            raise CheckpointError(f"{path}: tensor {name} has type {part.get_dtype()}, not one of {', '.join(types)}")
        self._asked_for.add(name)
        tensor: Tensor = self._shard(path).get_tensor(name)
        if part.get_dtype() in FLOATS:
            self.check_finite(name, tensor)
        return tensor.view(*shape)

    def check_finite(self, name: str, values: Tensor) -> None:
        """Raise CheckpointError unless all `values`, which come from the tensor `name`, are finite."""
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):
            self.refuse(name, "holds NaN or infinite values")

    def refuse(self, name: str, what: str) -> NoReturn:
        """Raise a CheckpointError that names the tensor and its file."""
        raise CheckpointError(f"{self._file_of[self._stored(name)]}: tensor {name} {what}")

    def has_linear(self, name: str) -> bool:
        """Whether any layer has a linear of that name, such as `qkv_proj`."""
        return any(f".{name}." in stored for stored in self._file_of)

    def unread(self) -> list[str]:
        """The tensors that were not read. If there is a `language_model`, only that counts."""
        names = self._file_of.keys() - self._asked_for
        is_part = any(map(_is_in_language_model, self._file_of))
        return sorted(name for name in names if not is_part or _is_in_language_model(name))

    def check_copies(self) -> None:
        """Raise CheckpointError if shards hold different values of a tensor: other readers might use the others."""
        for path in self.files:
            for name in self._shard(path).keys():  # noqa: SIM118 - a shard is no mapping
                wanted = self._file_of.get(name, path)
                if wanted == path:
                    continue
                if not _are_same(*(self._shard(each).get_tensor(name) for each in (wanted, path))):
                    self.refuse(name, f"has other values in {path.name}")

    def is_zero(self, name: str) -> bool:
        """Whether the tensor, which must exist, holds only zeros."""
        return not self._shard(self._file_of[name]).get_tensor(name).any()

    def refuse_missing(self, name: str) -> NoReturn:
        """Raise a CheckpointError that says that the tensor is missing."""
        raise CheckpointError(f"{self._where()}: tensor {self._stored(name)} is missing")

    def refuse_size(self, name: str, shape: Sequence[int]) -> NoReturn:
        """Raise a CheckpointError that says that tensors like this, of that shape in total, exceed the files."""
        raise CheckpointError(
            f"{self._where()}: config.json implies tensor {self._stored(name)} and its like in shape {list(shape)}, "
            "which is more than all files hold"
        )

    def _stored(self, name: str) -> str:
        for stored in (_LANGUAGE_MODEL + name, _IN_MODEL + _LANGUAGE_MODEL + name.removeprefix(_IN_MODEL)):
            if stored in self._file_of:
                return stored
        return name

    def _slice(self, path: Path, name: str) -> Any:
        try:
            return self._shard(path).get_slice(name)
        except SafetensorError:
            raise CheckpointError(f"{path}: tensor {name} is missing, though {_INDEX} names it") from None

    def _shard(self, path: Path) -> Any:
        if path not in self._shards:
            self._shards[path] = open_shard(path)
        return self._shards[path]

    def _read_index(self) -> dict[str, Path]:
        path = self._dir / _SINGLE
        if path.exists():  # it takes precedence over an index, as in transformers
            return dict.fromkeys(self._shard(path).keys(), path)
        if (self._dir / _INDEX).exists():
            weight_map = read_json(self._dir / _INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{self._dir / _INDEX} has no weight_map")
            return {name: self._inside(file) for name, file in weight_map.items()}
        raise CheckpointError(
            f"{self._dir} has neither {_SINGLE} nor {_INDEX}: {other_formats.about_weights(self._dir)}"
        )

    def _inside(self, file: object) -> Path:
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or "\0" in file:
            raise CheckpointError(f"{self._dir / _INDEX}: {file!r} is not a file name")
        return self._dir / file

    def _where(self) -> Path:
        single = self._dir / _SINGLE
        return single if single.exists() else self._dir / _INDEX


def _is_in_language_model(stored: str) -> bool:
    return stored.removeprefix(_IN_MODEL).startswith(_LANGUAGE_MODEL)


def _are_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit, whatever their type."""
    is_alike = a.dtype == b.dtype and a.shape == b.shape
    return is_alike and torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (a, b)))


def open_shard(path: Path) -> Any:
    """Map a safetensors file; CheckpointError if it is missing, truncated or of another format."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, though {_INDEX} names it") from None
    except (SafetensorError, OSError) as error:
        pointer = other_formats.about_pointer(path)
        raise CheckpointError(pointer or f"{path} is truncated or not a safetensors file: {error}") from None
