"""Baton beside other servers, one after the other on the same cores: tokens per second through HTTP.

    baton bench peers --vllm ~/vllm/bin/vllm --llama-server ~/llama.cpp/build/bin/llama-server --gguf llama-107m.gguf

Every server has all cores, the same bf16 model (a random 107M Llama, or --model) and the same client: waves of 1, 8 and
32 requests at once with 128 random tokens in and 64 out, greedy, then single prompts of 512 and 2048 tokens. Servers
take turns over the rounds; each figure is the best of its rounds. transformers runs in this process, without HTTP.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from bench import _command, serve
from bench._machine import free_port, machine
from bench._turns import in_turns
from engine import random_checkpoint

START_TIMEOUT_S = 300.0
WAVES = (1, 8, 32)
PROMPTS = (512, 2048)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64

Figures = dict[str, float]  # column -> tokens per second


@dataclass(frozen=True)
class Server:
    """One way to serve the model: a command that ends when it is told to, or none for transformers."""

    name: str
    command: tuple[str, ...]
    port: int
    environment: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Measure all that is installed; exit code 1 where a server did not start or a request failed."""
    args = _parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or str(random_checkpoint.write(Path(scratch) / "llama-107m", random_checkpoint.LLAMA_107M))
        servers = _servers(args, model, scratch)
        best: dict[str, Figures] = {server.name: {} for server in servers}
        for server in in_turns(servers, args.rounds):
            for column, value in _measure(server, model).items():
                best[server.name][column] = max(value, best[server.name].get(column, 0.0))
    print(f"{machine()}\n{_command.line('peers', [Path(word).name for word in argv])}\n")
    print(_table(best))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baton bench peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a checkpoint; a random 107M Llama where none is given")
    parser.add_argument("--vllm", help="vLLM's command, with its CPU backend", metavar="FILE")
    parser.add_argument("--llama-server", help="llama.cpp's server", metavar="FILE")
    parser.add_argument("--gguf", help="the same model for llama.cpp, in bf16", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server")
    args = parser.parse_args(argv)
    if bool(args.llama_server) != bool(args.gguf):
        parser.error("--llama-server and --gguf go together")
    return args


def _servers(args: argparse.Namespace, model: str, scratch: str) -> list[Server]:
    cores = sorted(os.sched_getaffinity(0))
    threads, port = str(len(cores)), free_port()
    up = ("baton", "up", "--colocated", "--model", model, "--port", str(port), "--log-level", "error")
    servers = [Server("baton", (sys.executable, "-m", "fleet", *up[1:]), port, {"BATON_HOME": f"{scratch}/home"})]
    if args.vllm:
        flags = ("--dtype", "bfloat16", "--max-model-len", "4096", "--no-enable-prefix-caching")
        bind = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2"}
        port = free_port()
        servers.append(Server("vllm", (args.vllm, "serve", model, "--port", str(port), *flags), port, bind))
    if args.llama_server:
        slots = str(max(WAVES))
        port = free_port()
        context = str(max(WAVES) * max(PROMPTS) * 2)
        slotted = ("-m", args.gguf, "-t", threads, "-np", slots, "-c", context, "--no-webui", "--port", str(port))
        servers.append(Server("llama.cpp", (args.llama_server, *slotted), port))
    if find_spec("transformers"):
        servers.append(Server("transformers", (), 0))
    return servers


def _measure(server: Server, model: str) -> Figures:
    if not server.command:
        return _transformers(model)
    with _running(server):
        _drive(server, 1, 64, 2, requests=2)  # the first request compiles and warms up
        waves = {f"c{n}": _drive(server, n, PROMPT_TOKENS, OUTPUT_TOKENS, requests=max(n, 4)) for n in WAVES}
        prompts = {f"prefill {n}": _drive(server, 1, n, 1, requests=3, of_prompt=True) for n in PROMPTS}
    return waves | prompts


@contextlib.contextmanager
def _running(server: Server) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        environment = os.environ | server.environment
        process = subprocess.Popen(server.command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait_until_ready(server, process)
            yield
        except ConnectionError:
            log.seek(0)
            sys.stderr.write(log.read()[-3000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Until it answers; ConnectionError where it ends or takes too long."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ConnectionError(f"{server.name} ended with exit code {process.returncode} instead of serving")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/models", timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.2)
    raise ConnectionError(f"{server.name} did not start within {START_TIMEOUT_S:.0f} s")


def _drive(
    server: Server, concurrency: int, num_in: int, num_out: int, *, requests: int, of_prompt: bool = False
) -> float:
    """Output tokens per second over the whole wave; or, `of_prompt`, prompt tokens per second to the first token."""
    flags = {"concurrency": concurrency, "requests": requests, "prompt-tokens": num_in, "output-tokens": num_out}
    words = [f"--{name}={value}" for name, value in flags.items()]
    run = asyncio.run(serve.measure(serve.parse([f"--url=http://127.0.0.1:{server.port}", *words]), concurrency))
    if run["failed"]:
        raise RuntimeError(f"{server.name}: {run['failed']} requests failed: {run['error']}")
    return float(num_in / run["ttft_p50_s"] if of_prompt else run["output_tokens_per_s"])


def _transformers(model: str) -> Figures:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def seconds(batch: int, num_in: int, num_out: int) -> float:
        prompt = torch.randint(100, 4000, (batch, num_in))
        start_s = time.perf_counter()
        loaded.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=num_out,
            min_new_tokens=num_out,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - start_s

    with torch.inference_mode():
        seconds(1, 64, 2)
        waves = {f"c{n}": n * OUTPUT_TOKENS / seconds(n, PROMPT_TOKENS, OUTPUT_TOKENS) for n in WAVES}
        return waves | {f"prefill {n}": n / min(seconds(1, n, 1) for _ in range(3)) for n in PROMPTS}


def _table(best: dict[str, Figures]) -> str:
    columns = [*(f"c{n}" for n in WAVES), *(f"prefill {n}" for n in PROMPTS)]
    lines = ["tokens/s     " + "".join(f"{column:>14}" for column in columns)]
    lines += [f"{name:<13}" + "".join(f"{row[column]:>14.0f}" for column in columns) for name, row in best.items()]
    peers = [row for name, row in best.items() if name != "baton"]
    if peers:
        ratios = [best["baton"][column] / max(row[column] for row in peers) for column in columns]
        lines.append("baton / best " + "".join(f"{ratio:>13.2f}x" for ratio in ratios))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
