"""Checkpoints changed on their way into an engine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from baton.process.settings import EngineFlags
from engine.engine import Engine
from engine.loading import load_engine

EXPERTS = "model.layers.{layer}.mlp.experts"
Tensors = dict[str, torch.Tensor]


def changed(directory: Path, change: Callable[[Tensors], Tensors], **config) -> Path:
    """A copy with other tensors and other fields in its config.json."""
    copy = directory.parent / f"{directory.name}-changed"
    shutil.copytree(directory, copy, dirs_exist_ok=True)
    save_file(change(load_file(directory / "model.safetensors")), copy / "model.safetensors")
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | config))
    return copy


def load(directory: Path) -> Engine:
    flags = EngineFlags(model=str(directory), kv_memory="1MiB", num_threads=1, device="cpu")
    return load_engine(directory, flags)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}
