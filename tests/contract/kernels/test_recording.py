"""Replayed calls of compiled kernels give what new calls would give, and nothing else can be recorded."""

import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kernels.api import Attention
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.recording import NotRecordable, Recorder
from tests.contract.kernels.backends import Backend
from tests.contract.kernels.batches import make_batch
from tests.contract.kernels.mixtures import make_mixture

ROWS, HIDDEN = 5, 64


class Layers:
    """A computation with every op, each on the result of the one before."""

    def __init__(self, backend: Backend) -> None:
        self.kernels = backend.kernels
        batch = make_batch(backend, [(40 + row, 1) for row in range(ROWS)], head_dim=16, group=2, num_kv_heads=1)
        self.kv, self.meta = batch.kv.nan_to_num(), batch.meta
        self.x, self.residual = backend.randn(ROWS, HIDDEN), backend.randn(ROWS, HIDDEN)
        self.token_ids = torch.tensor([3, 0, 4, 4, 1])
        self.norm, self.sinks = backend.fp32(HIDDEN), backend.fp32(2)
        self.qkv = self.kernels.pack_linear(backend.randn(64, HIDDEN), backend.randn(64))
        self.o = self.kernels.pack_linear(backend.randn(2 * HIDDEN, 32) / 8, None, bits=8)
        self.gated = self.kernels.pack_gated(backend.randn(2 * HIDDEN, HIDDEN) / 8, backend.randn(2 * HIDDEN), "silu")
        mixture = make_mixture(backend, ROWS, hidden=HIDDEN)
        self.ids, self.weights = mixture.expert_ids, mixture.weights
        self.experts = self.kernels.pack_experts(mixture.gate_up, mixture.down, "silu")
        self.cos_sin, self.positions = backend.fp32(64, 16), torch.arange(ROWS)
        self.slots = torch.tensor([1, -1, 3, 40, 17])

    def compute(self) -> Sequence[Tensor]:
        kernels = self.kernels
        x = kernels.embed(self.token_ids, self.x, 3.0)
        qkv = self.qkv(kernels.rms_norm(x, self.norm, 1e-6))
        q = kernels.rope_and_cache(qkv, self.cos_sin, self.positions, self.slots, self.kv, 2, 1)
        attended = kernels.paged_attention(q, self.kv, self.meta, Attention(0.3, 17, 5.0, self.sinks))
        gated = kernels.gated(self.o(attended.view(ROWS, -1)), "gelu_tanh")
        x, residual = kernels.add_rms_norm(gated, self.residual, self.norm, 1e-5)
        x = self.experts(self.gated(x), self.ids, self.weights)
        x, _ = kernels.add_rms_norm(x, residual, self.norm, 1e-5)
        values, is_finite, largest = kernels.read_logits(x, 20.0)
        assert largest is not None
        return x, values, is_finite, largest


def recorder(backend: Backend, max_rows: int = ROWS) -> Recorder:
    assert isinstance(backend.kernels, CPUKernels)
    return backend.kernels.recorder(max_rows)


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_a_replay_reads_the_current_contents_of_its_inputs(cpu: Backend) -> None:
    layers = Layers(cpu)
    replay = recorder(cpu)(layers.compute)
    for _ in range(3):
        for buffer in (layers.x, layers.residual, layers.weights):
            buffer.copy_(torch.randn(buffer.shape))
        layers.token_ids.copy_(layers.token_ids.roll(1))
        layers.slots.copy_(layers.slots.roll(1))
        layers.meta.seq_lens.sub_(3)
        kv = layers.kv.clone()
        results, kv_after = [result.clone() for result in replay()], layers.kv.clone()
        layers.kv.copy_(kv)
        assert equal(results, layers.compute())
        assert torch.equal(kv_after, layers.kv)


def test_recordings_of_different_sizes_share_buffers_without_interfering(cpu: Backend) -> None:
    linear, x = cpu.kernels.pack_linear(cpu.randn(40, HIDDEN), None), cpu.randn(ROWS, HIDDEN)
    record = recorder(cpu)
    replays = [record(lambda rows=rows: [linear(x[:rows])]) for rows in (2, ROWS, 1)]
    for buffer in (x, cpu.randn(ROWS, HIDDEN)):
        x.copy_(buffer)
        for replay in replays:
            [result] = replay()
            assert torch.equal(result, linear(x[: len(result)]))
    assert equal(replays[0](), [linear(x[:2])])


def test_results_outside_recordings_have_memory_of_their_own(cpu: Backend) -> None:
    layers = Layers(cpu)
    replay = recorder(cpu)(layers.compute)
    kept = layers.compute()
    expected = [result.clone() for result in kept]
    layers.x.add_(1)
    replay()
    assert equal(kept, expected)


def test_a_computation_with_torch_ops_is_not_recordable(cpu: Backend) -> None:
    layers, record = Layers(cpu), recorder(cpu)
    for compute in (
        lambda: [layers.compute()[0] + 1],
        lambda: [layers.compute()[0].add_(1)],
        lambda: [layers.o(layers.compute()[0].t()[:32].t())],
        lambda: [layers.qkv(layers.x.clone())],
    ):
        with pytest.raises(NotRecordable, match="not a compiled kernel"):
            record(compute)
    assert equal(record(layers.compute)(), layers.compute())


def test_a_result_used_after_its_buffer_is_reused_is_not_recordable(cpu: Backend) -> None:
    """The ninth result overwrites the buffer of the first."""
    x, norm = cpu.randn(ROWS, HIDDEN), cpu.fp32(HIDDEN)

    def compute() -> Sequence[Tensor]:
        first = last = cpu.kernels.rms_norm(x, norm, 1e-6)
        for _ in range(8):
            last = cpu.kernels.rms_norm(last, norm, 1e-6)
        return cpu.kernels.add_rms_norm(last, first, norm, 1e-6)

    with pytest.raises(NotRecordable, match="different result"):
        recorder(cpu)(compute)


def test_calls_of_other_threads_are_not_recorded(cpu: Backend) -> None:
    """They may come from another engine of this process, which shares the library."""
    layers, other = Layers(cpu), Layers(cpu)
    others: list[Sequence[Tensor]] = []

    def compute() -> Sequence[Tensor]:
        thread = threading.Thread(target=lambda: others.append(other.compute()))
        thread.start()
        thread.join()
        return layers.compute()

    replay = recorder(cpu)(compute)
    num_others, kv = len(others), other.kv.clone()
    other.kv.zero_()
    assert equal(replay(), layers.compute())
    assert len(others) == num_others
    assert not other.kv.any()
    other.kv.copy_(kv)
    assert all(equal(results, other.compute()) for results in others)


def test_recording_imports_no_modules() -> None:
    """It happens within a decode step, and some ways to intercept torch load its compiler, which takes seconds."""
    code = (
        "import sys, torch; from kernels.cpu.kernels import CPUKernels; kernels = CPUKernels(torch.float32); "
        "x, norm = torch.ones(1, 8), torch.ones(8); before = set(sys.modules); "
        "kernels.recorder(1)(lambda: [kernels.rms_norm(x, norm, 1e-6)]); print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
