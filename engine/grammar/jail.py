"""A process that compiles clients' grammars in isolation: `python -m engine.grammar.jail MODEL_DIR VOCAB_SIZE EOS,EOS`.

llguidance is quick with real grammars, but some hostile ones make it take minutes or gigabytes, or overrun its stack.
So this process, which has loaded the vocabulary, forks for every grammar that it reads from standard input (a JSON line
each). The fork compiles it and computes masks, under limits of processor time, memory and stack. The process answers
with a line: the grammar in llguidance's form, or why it is refused. It exits at the end of its input.
"""

import itertools
import os
import random
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import llguidance
import msgspec
import psutil

from baton.errors import BatonError, InvalidRequest
from baton.request import Grammar, GrammarKind
from engine.grammar import limits, text
from engine.grammar import tokens as vocabulary

Result = TypeVar("Result")

TOO_COMPLEX = "The grammar is too complex"
ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}', "")
_NICENESS = 2
_BEAT_S = 0.5
_NUM_TRIED_TOKENS = 16
_MAX_REASON_CHARS = 200
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on one grammar."""

    serialized: str = ""  # what LLMatcher takes
    num_bytes: int = 0  # memory that it takes when compiled
    error: str = ""  # why it is refused
    is_final: bool = True  # False if another attempt may have another outcome


def main(argv: Sequence[str]) -> int:
    """Answer until the end of the input."""
    model_dir, vocab_size, eos_token_ids = argv
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokens = vocabulary.load(model_dir, int(vocab_size), [int(i) for i in eos_token_ids.split(",")])
    any_fork = _judge_in_fork(ANY_OBJECT, tokens.tokenizer).num_bytes
    for line in sys.stdin.buffer:
        verdict = _judge_in_fork(msgspec.json.decode(line, type=Grammar), tokens.tokenizer)
        verdict = msgspec.structs.replace(verdict, num_bytes=max(0, verdict.num_bytes - any_fork))
        _say(msgspec.json.encode(verdict) + b"\n")
    return 0


def judge(grammar: Grammar, tokenizer: llguidance.LLTokenizer) -> Verdict:
    """Compile a grammar and follow it for some tokens, each on a thread with a small stack."""
    try:
        serialized = text.serialized(grammar)
    except InvalidRequest as error:
        return Verdict(error=error.message[:_MAX_REASON_CHARS])
    fuel = limits.parser_limits()
    try:
        matcher = _in_thread(
            limits.COMPILE_STACK_BYTES,
            lambda: llguidance.LLMatcher(tokenizer, serialized, log_level=0, limits=fuel),
        )
    except RuntimeError:  # no thread can be started, for which the grammar is not to blame
        return Verdict(error=TOO_COMPLEX, is_final=False)
    is_quick = _in_thread(limits.MASK_STACK_BYTES, lambda: _walk(matcher))
    if matcher.is_error():
        return Verdict(error=_reason(matcher.get_error()))
    return Verdict(serialized) if is_quick else Verdict(error=TOO_COMPLEX)


def _in_thread(stack_bytes: int, function: Callable[[], Result]) -> Result:
    """Run the function on a thread and return its result; raises IndexError if the function raised an error."""
    results: list[Result] = []
    threading.stack_size(stack_bytes)
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def _walk(matcher: llguidance.LLMatcher) -> bool:
    """Compute the first mask, then follow allowed tokens in a copy. Returns whether each mask was quick to compute."""
    numbers = random.Random(0)  # noqa: S311 - any tokens will do
    mask, at = _timed_mask(matcher), matcher.deep_copy()
    for _ in range(_NUM_TRIED_TOKENS):
        if mask is None or at.is_stopped():
            break
        at.consume_token(_allowed_token(mask, numbers.randrange(len(mask))))
        mask = _timed_mask(at)
    return mask is not None


def _allowed_token(mask: bytes, start: int) -> int:
    """The first token whose bit is set, from byte `start` on, wrapping around."""
    place = next(i for i in itertools.chain(range(start, len(mask)), range(start)) if mask[i])
    return 8 * place + (mask[place] & -mask[place]).bit_length() - 1


def _timed_mask(matcher: llguidance.LLMatcher) -> bytes | None:
    start_s = time.thread_time()
    mask = matcher.compute_bitmask()
    return mask if time.thread_time() - start_s <= limits.MAX_MASK_CPU_S else None


def _reason(error: str) -> str:
    """llguidance's message as one short line: the error in a regex if it names one, else the first line."""
    lines = [line.strip() for line in error.splitlines()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = said[-1] if said else lines[0] if lines else ""
    return f"The grammar is refused: {text}"[:_MAX_REASON_CHARS]


def _judge_in_fork(grammar: Grammar, tokenizer: llguidance.LLTokenizer) -> Verdict:
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:  # a limit is reached
        os.close(reading)
        os.close(writing)
        return Verdict(error=TOO_COMPLEX, is_final=False)
    if pid == 0:
        try:
            _run_fork(grammar, tokenizer, writing)
        finally:
            os._exit(0)
    os.close(writing)
    answer, in_time = _read_all(reading, limits.COMPILE_WALL_S)
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        return msgspec.json.decode(answer, type=Verdict)
    except msgspec.DecodeError:  # it was killed before it had answered
        return Verdict(error=TOO_COMPLEX, is_final=in_time)


def _run_fork(grammar: Grammar, tokenizer: llguidance.LLTokenizer, writing: int) -> None:
    """Judge the grammar in the fork. If the fork dies, the grammar is refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _limit_fork()
    verdict = judge(grammar, tokenizer)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _MAXRSS_BYTES
    fits = grown <= limits.MAX_COMPILED_BYTES
    verdict = msgspec.structs.replace(verdict, num_bytes=grown) if fits else Verdict(error=TOO_COMPLEX)
    with os.fdopen(writing, "wb") as file:
        file.write(msgspec.json.encode(verdict))


def _limit_fork() -> None:
    if sys.platform == "linux":
        limit = psutil.Process().memory_info().vms + limits.COMPILE_ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.setitimer(signal.ITIMER_PROF, limits.COMPILE_CPU_S)  # its signal, SIGPROF, ends the process


def _read_all(file: int, timeout_s: float) -> tuple[bytes, bool]:
    """Read what the fork writes until it exits, which may be early; and whether it exited in time."""
    chunks: list[bytes] = []
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        if not select.select([file], [], [], min(left_s, _BEAT_S))[0]:
            _say(b" ")
            continue
        chunk = os.read(file, 1 << 16)
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)
    return b"", False


def _say(what: bytes) -> None:
    sys.stdout.buffer.write(what)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BatonError as error:
        sys.exit(error.message)
