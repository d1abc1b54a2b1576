"""A model whose next token depends on every bit of KV that it reads, and on nothing else but the token at hand.

The KV of a position is a mix of its token and of the KV of the position before, as read from the pool. The logits of a
position are a mix of all KV up to it, as read from the pool, over all layer groups. So a block that is foreign,
stale, or not there yet shows as another token. A step takes virtual time, layer group by layer group.
"""

import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from baton.kv.layout import KVLayout
from engine.batch import Batch
from engine.config import EngineConfig
from engine.engine import Engine
from engine.kv_cache import KVCache
from kernels.api import Logits

VOCAB_SIZE = 64
EOS = 7
NUM_GROUPS = 2
BLOCK_SIZE = 4
MAX_MODEL_LEN = 128
LAYOUT = KVLayout(
    num_layers=NUM_GROUPS, layers_per_group=1, block_size=BLOCK_SIZE, num_kv_heads=1, head_dim=2, num_planes=1,
    dtype="float32", model_fingerprint="51",
)  # fmt: skip

_A, _B, _C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(29)


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] uint64 each -> [N]."""
    x = (a * _A) ^ (b + _B)
    x = (x ^ (x >> _SHIFT)) * _C
    return x ^ (x >> _SHIFT)


class StubDecoder:
    """Of one engine. `work(num_tokens)` is called before each layer group: it lets time pass."""

    def __init__(self, cache: KVCache, work: Callable[[int], None]) -> None:
        shape = (NUM_GROUPS, cache.num_blocks * BLOCK_SIZE)
        self._kv = cache.pool.numpy().view(np.uint64).reshape(shape)  # [group, slot]
        self._work = work
        self._ids = np.arange(VOCAB_SIZE, dtype=np.uint64)

    def hidden(self, batch: Batch, on_layer_group: Callable[[int, Batch], None] | None = None) -> Tensor:
        """[W, 1]: of each wanted token the mix of all KV up to it, as the bits of a float64."""
        schedule, meta = batch.schedule, batch.meta
        token_ids, slots = batch.token_ids.numpy().astype(np.uint64), batch.slots.numpy()
        tables, seq_lens = meta.block_tables.numpy().copy(), meta.seq_lens.numpy().copy()
        states = [np.uint64(1)] * len(schedule.requests)
        with np.errstate(over="ignore"):
            for group in range(NUM_GROUPS):
                self._work(batch.num_tokens)
                at = 0
                for place, num_tokens in enumerate(schedule.num_tokens.tolist()):
                    length = int(seq_lens[place])
                    where = (tables[place, :, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).ravel()[:length]
                    start = length - num_tokens
                    before = self._kv[group, where[start - 1]] if start else np.uint64(group)
                    for i in range(at, at + num_tokens):
                        before = self._kv[group, slots[i]] = mix(before, token_ids[i])
                    at += num_tokens
                    read = mix(self._kv[group, where], np.arange(length, dtype=np.uint64))
                    states[place] = mix(states[place], np.bitwise_xor.reduce(read))
                if on_layer_group:
                    on_layer_group(group, batch)
        return torch.from_numpy(np.array(states, np.uint64).view(np.int64)).unsqueeze(1)

    def logits(self, hidden: Tensor) -> Logits:
        """The logits of [S, 1], between 0 and 4."""
        with np.errstate(over="ignore"):
            bits = mix(hidden.numpy().view(np.uint64), self._ids)
        values = torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / 2**22)
        return Logits(values, torch.ones(len(values), dtype=torch.bool), None)


def make_engine(num_blocks: int, work: Callable[[int], None] = lambda num_tokens: None, clock: object = None) -> Engine:
    """A real engine around the stub."""
    config = EngineConfig(
        max_model_len=MAX_MODEL_LEN, max_num_seqs=8, max_num_batched_tokens=24, block_size=BLOCK_SIZE,
        num_blocks=num_blocks, dtype="float32", device="cpu",
    )  # fmt: skip
    model = SimpleNamespace(vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({EOS}), hidden_size=1)
    cache = KVCache(LAYOUT, num_blocks, torch.device("cpu"))
    rng = np.random.default_rng(num_blocks)
    cache.pool[:] = torch.from_numpy(rng.integers(0, 256, cache.pool.numel(), np.uint8))  # what is not written is noise
    clocks = {"clock": clock} if clock else {}
    return CheckedEngine(config, model, StubDecoder(cache, work), cache, **clocks)


class CheckedEngine(Engine):
    """Accounts for every block after each step."""

    def step(self):
        output = super().step()
        self.check()
        return output


def reference(jobs: list) -> list[list[int]]:
    """The outputs of jobs on one engine that nothing disturbs."""
    from baton.request import Generation

    engine = make_engine(1024)
    requests = [
        engine.add(
            Generation(
                request_id="", key=key, token_ids=job.token_ids, num_prompt_tokens=len(job.token_ids),
                sampling=job.sampling, router_id="",
            )
        )
        for key, job in enumerate(jobs)
    ]  # fmt: skip
    while engine.has_work:
        engine.step()
    return [request.token_ids[request.num_prompt_tokens :] for request in requests]


def random_work(rng: random.Random, sleep: Callable[[float], None]) -> Callable[[int], None]:
    """Steps that take as long as the seed wants, longer with more tokens."""
    return lambda num_tokens: sleep((0.002 + 0.0005 * num_tokens) * rng.uniform(0.5, 2.0))
