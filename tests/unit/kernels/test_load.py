"""The choice of a backend: the fastest that this processor can run, or plain torch with a reason if there is none."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from kernels import dispatch
from kernels.cpu import kernels as cpu
from kernels.cpu import linear as cpu_linear
from kernels.cpu.build import BuildError
from kernels.cpu.linear import PackedLinear
from kernels.cpu.processor import LEVELS, Level, features, supported

CPU = torch.device("cpu")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(level: object) -> None:
        raise BuildError("no compiler found")

    monkeypatch.setattr(cpu, "Library", fail)
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


def test_loads_compiled_kernels_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.load(CPU, torch.bfloat16).name == "cpu"


@pytest.mark.usefixtures("no_library")
def test_falls_back_to_plain_torch_and_says_why() -> None:
    with pytest.warns(UserWarning, match="no compiler found"):
        kernels = dispatch.load(CPU, torch.float32)
    assert kernels.name == "reference"


def test_a_type_without_compiled_kernels_takes_plain_torch() -> None:
    with pytest.warns(UserWarning, match="float64"):
        assert dispatch.load(CPU, torch.float64).name == "reference"


def test_levels_follow_the_features_of_the_processor() -> None:
    amx, avx512bf16, avx512, avx2, portable = LEVELS
    assert supported(frozenset()) == [portable]
    assert supported(avx2.features | {"sse2"}) == [avx2, portable]
    assert supported(avx512.features) == [avx512, avx2, portable]
    assert supported(avx512bf16.features) == [avx512bf16, avx512, avx2, portable]
    assert supported(amx.features | {"AuthenticAMD"}) == list(LEVELS)
    assert supported(amx.features - {"amx_bf16"} | {"GenuineIntel"}) == [avx512, avx2, portable]
    assert supported(avx512.features - {"avx512vl"}) == [avx2, portable]
    assert supported(frozenset({"avx2"})) == [portable]  # without fma


def test_features_come_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    first = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 fma f16c\n"
    cpuinfo.write_text(first + "\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert features(cpuinfo) == {"AuthenticAMD", "fpu", "avx2", "fma", "f16c"}
    assert features(tmp_path / "missing") == frozenset()


HAS_TILES = "amx_tile" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
memory = ctypes.create_string_buffer(4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None) == 0
"""


@pytest.mark.skipif(not HAS_TILES, reason="this processor has no AMX")
@pytest.mark.parametrize(("before", "level"), [("", "amx"), (SMALL_SIGNAL_STACK, "avx512")])
def test_without_permission_for_amx_the_next_level_is_used(before: str, level: str) -> None:
    code = before + "from kernels.cpu.processor import features, supported; print(supported(features())[0].name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == level


def test_a_level_that_does_not_compile_falls_back_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Level("fast", (), frozenset()), LEVELS[-1]
    build = cpu.Library

    def compile_it(level: Level) -> cpu.Library:
        if level is fast:
            raise BuildError("unrecognized option")
        return build(level)

    monkeypatch.setattr(cpu, "supported", lambda available: [fast, slow])
    monkeypatch.setattr(cpu, "Library", compile_it)
    cpu.library.cache_clear()
    with pytest.warns(UserWarning, match="fast: unrecognized option"):
        assert cpu.CPUKernels(torch.float32).level is slow
    cpu.library.cache_clear()


def test_a_level_that_the_processor_cannot_run_is_refused() -> None:
    other = Level("other", (), frozenset({"no_such_feature"}))
    with pytest.raises(cpu.Unavailable, match="cannot run other"):
        cpu.CPUKernels(torch.float32, other)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_openmp_threads_are_shared_with_torch() -> None:
    dispatch.load(CPU, torch.float32)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line}
    assert len(mapped) == 1


@pytest.mark.parametrize("prefers", [False, True])
def test_onednn_takes_over_where_it_is_clearly_faster(prefers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own_s, onednn_s = (1.6, 1.0) if prefers else (1.4, 1.0)
    monkeypatch.setattr(cpu_linear, "features", lambda: {"avx512_bf16"})
    monkeypatch.setattr(
        cpu_linear, "_seconds", lambda linear, x: own_s if isinstance(linear, PackedLinear) else onednn_s
    )
    kernels = cpu.CPUKernels(torch.bfloat16, deterministic=False)
    cpu_linear.prefers_onednn.cache_clear()
    try:
        linear = kernels.pack_linear(torch.ones(8, 4, dtype=torch.bfloat16), None)
    finally:
        cpu_linear.prefers_onednn.cache_clear()
    assert isinstance(linear, PackedLinear) is not prefers
    assert linear(torch.ones(2, 4, dtype=torch.bfloat16)).tolist() == [[4.0] * 8] * 2


def test_deterministic_kernels_never_use_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "prefers_onednn", lambda library, dtype: True)
    weight = torch.ones(8, 32, dtype=torch.bfloat16)
    assert isinstance(dispatch.load(CPU, torch.bfloat16).pack_linear(weight, None), PackedLinear)
    other = dispatch.load(CPU, torch.bfloat16, deterministic=False)
    assert not isinstance(other.pack_linear(weight, None), PackedLinear)
    assert isinstance(other.pack_linear(weight, None, 4), PackedLinear)


def test_fp32_never_uses_onednn() -> None:
    kernels = cpu.CPUKernels(torch.float32, deterministic=False)
    assert isinstance(kernels.pack_linear(torch.ones(8, 4), None), PackedLinear)


@pytest.mark.parametrize(("asked", "holds"), [(None, False), (False, False), (True, True)])
def test_gpu_kernels_are_deterministic_only_on_request(asked: bool | None, holds: bool) -> None:
    linear = pytest.importorskip("kernels.triton.linear")
    kernels = dispatch.load(torch.device("cuda"), torch.bfloat16, asked)
    for packed in (kernels.pack_linear(torch.ones(8, 4), None), kernels.pack_heads(torch.ones(2, 8, 4))):
        assert isinstance(packed, linear.TiledLinear) is holds
