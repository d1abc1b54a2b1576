"""The compiled library, declared for ctypes: ops take addresses and numbers and return nothing."""

import ctypes
import threading
from collections.abc import Callable, Mapping
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from kernels.api import Activation
from kernels.cpu import build
from kernels.cpu.memory import Arena
from kernels.cpu.processor import Level

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as kernels.cpp numbers them
ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "swiglu_oai": 2}  # as elementwise.h does


class WeightsStruct(ctypes.Structure):
    """Mirrors gemm::Weights in weights.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("panels", "scales", "bias")),
        *((name, c_int64) for name in ("outputs", "inputs", "group", "storage")),
    )


OPS = {  # in the order in which kernels.cpp's `replay` numbers them
    "rms_norm": (c_int, *[c_void_p] * 3, *[c_int64] * 2, c_float, c_int),
    "add_rms_norm": (c_int, *[c_void_p] * 5, *[c_int64] * 2, c_float, c_int),
    "gated": (c_int, *[c_void_p] * 2, *[c_int64] * 2, *[c_int] * 2),
    "rope_and_cache": (c_int, *[c_void_p] * 8, c_float, *[c_int64] * 7, c_int),
    "paged_attention": (c_int, *[c_void_p] * 6, *[c_int64] * 8, *[c_float] * 2, c_int64, c_void_p, c_int),
    "linear": (c_int, *[c_void_p] * 3, c_int64, c_int),
    "linear_gated": (c_int, *[c_void_p] * 3, *[c_int64] * 2, *[c_int] * 2),
    "experts": (c_int, *[c_void_p] * 2, c_int, c_int64, *[c_void_p] * 4, *[c_int64] * 2, c_int),
    "read_logits": (c_int, *[c_void_p] * 4, *[c_int64] * 2, c_float, c_int),
    "embed": (c_int, *[c_void_p] * 3, *[c_int64] * 3, c_float, c_int),
}
_MASK = (*[c_void_p] * 2, *[c_int64] * 2, c_int)
_DRAW = (*[c_void_p] * 7, *[c_int64] * 2, c_int)
_PACK_WEIGHT = (c_int, *[c_void_p] * 2, *[c_int64] * 2)


class Library:
    """The functions of kernels.cpp, with its order of arguments. Calls release the GIL."""

    def __init__(self, level: Level) -> None:
        """Load that level's library, compiling it if needed. Raises BuildError or OSError."""
        loaded = ctypes.CDLL(str(build.library(level)))
        for name, arguments in (*OPS.items(), ("draw", _DRAW), ("mask", _MASK), ("pack_weight", _PACK_WEIGHT)):
            function = getattr(loaded, f"{name}_op")
            function.argtypes, function.restype = arguments, None
        self.rms_norm = loaded.rms_norm_op
        self.add_rms_norm = loaded.add_rms_norm_op
        self.gated = loaded.gated_op
        self.rope_and_cache = loaded.rope_and_cache_op
        self.paged_attention = loaded.paged_attention_op
        self.linear = loaded.linear_op
        self.linear_gated = loaded.linear_gated_op
        self.experts = loaded.experts_op
        self.read_logits = loaded.read_logits_op
        self.embed = loaded.embed_op
        self.draw = loaded.draw_op
        self.mask = loaded.mask_op
        self.pack_weight = loaded.pack_weight_op
        self.weight_bytes = loaded.weight_bytes
        self.weight_bytes.argtypes, self.weight_bytes.restype = (c_int, c_int64, c_int64), c_int64
        self.replay = loaded.replay
        self.replay.argtypes, self.replay.restype = (c_void_p, c_int64), None
        self.num_lanes = int(loaded.num_lanes())
        self.arena = Arena()  # holds all packed weights
        self.recording = threading.Lock()  # held while a Recorder intercepts calls

    def use(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Replace the ops (or `result`) of these names by other functions. The caller must hold `recording`."""
        for name, function in functions.items():
            setattr(self, name, function)

    def result(self, rows: int, *size: int, dtype: torch.dtype) -> Tensor:
        """Allocate an op's result."""
        return torch.empty(rows, *size, dtype=dtype)
