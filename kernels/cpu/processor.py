"""Which instruction sets the kernels are compiled for, and which of them this processor has."""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Level:
    """One build of the kernels: the compiler's flags, and the features that a processor needs to run it."""

    name: str
    flags: tuple[str, ...]  # for the compiler
    features: frozenset[str]  # as /proc/cpuinfo names them, and perhaps its vendor_id


# Linux on x86-64; see its Documentation/arch/x86/xstate.rst.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")

_AVX2_FEATURES = frozenset({"avx2", "fma", "f16c"})
_AVX512_FEATURES = _AVX2_FEATURES | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}

LEVELS = (  # fastest first
    Level(
        "amx",
        (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        _AVX512_FEATURES | {"avx512_bf16", "amx_tile", "amx_bf16"},
    ),
    # Only on AMD's processors: on Intel's, products in bf16 run at half the rate of those in fp32.
    Level("avx512bf16", (*_AVX512, "-mavx512bf16"), _AVX512_FEATURES | {"avx512_bf16", "AuthenticAMD"}),
    Level("avx512", _AVX512, _AVX512_FEATURES),
    Level("avx2", _AVX2, _AVX2_FEATURES),
    Level("portable", (), frozenset()),
)


def may_use_tiles() -> bool:
    """Ask Linux for the AMX tile registers, which a process gets only on request; returns whether it granted them.

    Its children then have them, too. Linux refuses if a thread's alternate signal stack is too small to save them.
    """
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


@cache
def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """This processor's vendor, and its instruction sets that Linux lets us use; empty if `cpuinfo` is unreadable."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    lines = [(name.strip(), value) for name, _, value in (line.partition(":") for line in text.splitlines())]
    named = frozenset(next((value for name, value in lines if name == "flags"), "").split())
    vendor = frozenset(next((value for name, value in lines if name == "vendor_id"), "").split())
    return (named if "amx_tile" in named and may_use_tiles() else named - {"amx_tile"}) | vendor


def supported(available: frozenset[str]) -> list[Level]:
    """The levels that a processor with these features can run, fastest first."""
    return [level for level in LEVELS if level.features <= available]
