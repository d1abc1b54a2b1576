"""How close whole decode steps on a GPU are to the time of reading weights and KV once.

The engine runs a Llama in the shape of the 8B models in bf16, with random weights created on the device: with CUDA
graphs and early launch, as in a node, and without either. `--deterministic` repeats this with deterministic
kernels, `--quantization` with quantised weights. The roofline is the bandwidth of a copy, measured in the same run.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baton.process.bounds import whole
from baton.request import Generation, SamplingParams
from bench import _command
from bench._gpu import copy_bandwidth
from engine import resolve
from engine.config import EngineConfig
from engine.engine import Engine
from engine.kv_cache import KVCache
from engine.model.checkpoint import FLOATS
from engine.model.config import ModelConfig
from engine.model.cuda_graph import CudaCapture, GraphedDecoder
from engine.model.decoder import Decoder
from engine.model.rotary import layer_tables
from engine.model.weights import WeightLoader
from engine.random_checkpoint import TINY, AnyTensor
from kernels.dispatch import load as load_kernels
from kernels.quantize import bytes_per_weight

LLAMA_8B = TINY | {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


class RandomTensors(AnyTensor):
    """Creates every requested tensor on the device."""

    def __init__(self, device: torch.device, bits: int = 16) -> None:
        """`num_bytes` counts what a step reads of the weights, in `bits` if they are of a layer."""
        self._device, self._bits = device, bits
        self.num_bytes = 0

    def tensor(
        self, name: str, shape: Sequence[int], types: Sequence[str] = FLOATS, *, reshaped: bool = False
    ) -> Tensor:
        """Return a bf16 tensor: ones for norms, and linear weights scaled to keep the size of activations."""
        is_quantized = self._bits < 16 and len(shape) > 1 and ".layers." in name
        each = bytes_per_weight(self._bits, shape[-1]) if is_quantized else 2
        self.num_bytes += 0 if "embed" in name else int(each * torch.Size(shape).numel())
        if len(shape) == 1:
            return torch.ones(*shape, dtype=torch.bfloat16, device=self._device)
        return torch.randn(*shape, dtype=torch.bfloat16, device=self._device).mul_(shape[-1] ** -0.5)


class Bench:
    """A model, and engines that run it in different ways."""

    def __init__(self, raw: dict[str, Any], config: EngineConfig, *, deterministic: bool) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "config.json").write_text(json.dumps(raw), encoding="utf-8")
            self.model = ModelConfig.load(scratch)
        self.config = config
        device, dtype = torch.device(config.device), torch.bfloat16
        tensors = RandomTensors(device, config.weight_bits)
        kernels = load_kernels(device, dtype, deterministic)
        with torch.inference_mode():
            loader = WeightLoader(self.model, tensors, kernels, dtype, device, config.weight_bits)
            weights = loader.load(lambda fraction: None)
            tables = layer_tables(self.model, config.max_model_len, device)
        self.weight_bytes = tensors.num_bytes
        layout = resolve.layout(self.model, config.block_size, config.dtype, "bench")
        self.cache = KVCache(layout, config.num_blocks, device)
        self.decoder = Decoder(self.model, weights, kernels, self.cache, tables)

    def step_s(
        self, decoder: Decoder | GraphedDecoder, num_seqs: int, context: int, num_steps: int, runs_ahead: bool = False
    ) -> float:
        """Return the median seconds of a decode step, including scheduling and sampling."""
        config = dataclasses.replace(self.config, runs_ahead=runs_ahead)
        engine = Engine(config, self.model, decoder, self.cache)
        for key in range(num_seqs):
            tokens = [(key * 7919 + i * 31) % self.model.vocab_size for i in range(context)]
            sampling = SamplingParams(temperature=0.0, max_tokens=num_steps + 8, ignore_eos=True)
            engine.add(
                Generation(
                    request_id=f"r{key}",
                    key=key,
                    token_ids=tokens,
                    num_prompt_tokens=context,
                    sampling=sampling,
                    cache_salt=b"",
                    router_id="bench",
                )
            )
        while engine.current_load().num_waiting_tokens:
            engine.step()
        took_s = []
        for _ in range(3):
            engine.step()
        for _ in range(num_steps):
            start_s = time.perf_counter()
            engine.step()
            took_s.append(time.perf_counter() - start_s)
        return statistics.median(took_s)


def engine_config(
    raw: dict[str, Any], device: str, num_seqs: int, context: int, quantization: str = "none"
) -> EngineConfig:
    """Return a configuration with room for `num_seqs` requests of `context` tokens and some output."""
    block_size, room = 16, context + 256
    return EngineConfig(
        max_model_len=min(room, raw["max_position_embeddings"]),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=2048,
        block_size=block_size,
        num_blocks=num_seqs * -(-room // block_size),
        dtype="bfloat16",
        device=device,
        quantization=quantization,
    )


def main(argv: Sequence[str]) -> int:
    parser = _command.parser("gpu_decode", __doc__)
    parser.add_argument("--batch-sizes", type=whole(), nargs="+", default=[1, 64], help="requests per step")
    parser.add_argument("--context", type=whole(), default=1024, help="prompt tokens before decoding")
    parser.add_argument("--num-steps", type=whole(), default=40, help="steps to measure")
    parser.add_argument("--deterministic", action="store_true", help="also measure deterministic kernels")
    parser.add_argument("--quantization", nargs="+", default=[], choices=("int8", "int4"), help="also measure these")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU, and torch sees none", file=sys.stderr)
        return 1
    print(_command.line("gpu_decode", argv))
    copy_rate = copy_bandwidth(30)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {copy_rate / 1e9:.0f} GB/s")
    for deterministic in (False, True)[: 1 + args.deterministic]:
        print_steps(args, copy_rate, deterministic=deterministic)
    for quantization in args.quantization:
        print_steps(args, copy_rate, quantization=quantization)
    return 0


def print_steps(
    args: argparse.Namespace, copy_rate: float, *, deterministic: bool = False, quantization: str = "none"
) -> None:
    """Print a line for each batch size and mode."""
    config = engine_config(LLAMA_8B, "cuda", max(args.batch_sizes), args.context, quantization)
    bench = Bench(LLAMA_8B, config, deterministic=deterministic)
    kind = ", deterministic" * deterministic + f", {quantization}" * (quantization != "none")
    print(f"\nweights {bench.weight_bytes / 1e9:.1f} GB, contexts of {args.context}{kind}")
    print("batch       step   of roofline")
    graphed = GraphedDecoder(bench.decoder, bench.config, CudaCapture())
    for num_seqs in args.batch_sizes:
        kv_bytes = num_seqs * args.context * bench.cache.layout.block_bytes / bench.config.block_size
        bound_s = (bench.weight_bytes + kv_bytes) / copy_rate
        for name, decoder, runs_ahead in (
            ("graphs, ahead", graphed, True),
            ("graphs, step by step", graphed, False),
            ("no graphs, ahead", bench.decoder, True),
            ("no graphs, step by step", bench.decoder, False),
        ):
            step_s = bench.step_s(decoder, num_seqs, args.context, args.num_steps, runs_ahead)
            print(f"{num_seqs:5} {step_s * 1e3:7.2f} ms   {bound_s / step_s:.0%}   {name}", flush=True)
