"""Which instruction sets the kernels are compiled for, and which of them this processor has."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Level:
    """One build of the kernels: what the compiler may use, and what the processor must have for it."""

    name: str
    flags: tuple[str, ...]  # for the compiler
    features: frozenset[str]  # as /proc/cpuinfo names them


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")

LEVELS = (  # fastest first
    Level("avx512", _AVX512, frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"})),
    Level("avx2", _AVX2, frozenset({"avx2", "fma", "f16c"})),
    Level("portable", (), frozenset()),
)


@cache
def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this processor; none where the system does not say."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next((frozenset(flags.split()) for name, _, flags in lines if name.strip() == "flags"), frozenset())


def supported(available: frozenset[str]) -> list[Level]:
    """Levels that a processor with these features can run, fastest first."""
    return [level for level in LEVELS if level.features <= available]
