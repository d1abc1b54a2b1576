"""The phases of `baton loadtest`: what each one measures, and when it passes."""

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable

from bench._load.figures import figures, percentile, timeline
from bench._load.sse_client import Stream
from fleet.loadtest.run import Run, Settings
from fleet.loadtest.site import Site
from fleet.loadtest.verdict import Verdict
from fleet.loadtest.watch import MemoryWatch, back_to_normal_s, longest_silence_s, throughput_back_s, tokens_of_unended

MAX_ERRORS = 0.001
MAX_DRIFT = 1.25  # factor on a p99, between the two halves of the phase
DRIFT_SLACK_S = 0.05  # normal variation of a p99 in short runs
MIN_GOODPUT = 0.9  # in overload, as a share of the throughput at the target
NORMAL_WITHIN_S = 30.0
BACK_WITHIN_S = 60.0
MAX_SILENCE_S = 5.0  # of all streams together, after a node was killed


async def run_all(site: Site, settings: Settings, on_phase: Callable[[Verdict], None]) -> list[Verdict]:
    """Run each phase in turn, also after one that fails."""
    run, verdicts = Run(site, settings), []
    await run.closed(min(4, settings.concurrency), 2.0)  # the first requests warm up
    for name in settings.phases:
        verdict = await _PHASES[name](run, settings.seconds(name))
        on_phase(verdict)
        verdicts.append(verdict)
    return verdicts


async def _baseline(run: Run, seconds: float) -> Verdict:
    streams, began_s, took_s = await run.closed(1, seconds)
    verdict = Verdict("baseline", figures=figures(streams, took_s), timeline=timeline(streams, began_s))
    measured = verdict.figures
    run.normal_ttft_s = measured["ttft_p95_s"]
    verdict.check(bool(streams) and not measured["failed"], f"{measured['failed']} of {len(streams)} requests failed")
    times = ", ".join(f"{n.upper()} p50 {measured[f'{n}_p50_s'] * 1000:.1f} ms" for n in ("ttft", "tpot", "e2e"))
    verdict.check(bool(streams), times)
    return verdict


async def _ramp(run: Run, seconds: float) -> Verdict:
    verdict, levels = Verdict("ramp"), _levels(run.settings.concurrency)
    num_failed = num_requests = 0
    for level in levels:
        streams, _, took_s = await run.closed(level, seconds / len(levels))
        measured = figures(streams, took_s) | {"concurrency": level}
        verdict.curve.append(measured)
        num_failed, num_requests = num_failed + measured["failed"], num_requests + len(streams)
    run.peak = verdict.curve[-1]
    verdict.figures = run.peak
    best = max(verdict.curve, key=lambda level: float(level["output_tokens_per_s"]))
    verdict.check(_few(num_failed, num_requests), f"{num_failed} of {num_requests} requests failed")
    verdict.check(True, f"best: {best['output_tokens_per_s']:.0f} tokens/s at concurrency {best['concurrency']}")
    return verdict


async def _sustained(run: Run, seconds: float) -> Verdict:
    async with MemoryWatch(run.site, seconds) as watch:
        streams, began_s, took_s = await run.closed(run.settings.concurrency, seconds)
    measured = figures(streams, took_s)
    run.peak = measured
    verdict = Verdict("sustained", figures=measured, timeline=timeline(streams, began_s), memory=watch.samples)
    errors = f"{measured['failed']} of {len(streams)} requests failed (limit {MAX_ERRORS:.1%})"
    verdict.check(_few(measured["failed"], len(streams)), errors)
    if (worst := watch.worst_growth()) is None:
        verdict.check(False, "memory could not be read for long enough: give --metrics-url, or more time")
    else:
        name, growth = worst
        text = f"memory: largest growth {growth.share:+.1%}, of {name}, since the first quarter"
        verdict.check(not growth.is_too_much, text)
    middle_s = began_s + took_s / 2
    for metric in ("ttft", "tpot"):
        first, second = _p99s(streams, middle_s, metric)
        if math.isnan(first + second) and metric == "tpot":  # answers of one token have none
            continue
        text = f"{metric.upper()} p99 {first * 1000:.0f} ms in the first half, {second * 1000:.0f} ms in the second"
        verdict.check(second <= MAX_DRIFT * first + DRIFT_SLACK_S, text)
    return verdict


async def _overload(run: Run, seconds: float) -> Verdict:
    await run.need_normal()
    await run.need_peak()
    rate = 2 * run.peak["requests_per_s"]
    streams, hung_up, began_s = await run.open(rate, seconds)
    ended_s = time.monotonic()
    measured = figures(streams, ended_s - began_s)
    verdict = Verdict("overload", figures=measured, timeline=timeline([*streams, *hung_up], began_s))
    strange = {code: number for code, number in measured["errors"].items() if code not in ("429", "503")}
    verdict.check(not strange, f"{rate:.1f} requests/s: errors {measured['errors'] or 'none'}; 429 and 503 are allowed")
    num_tokens = measured["output_tokens"] + tokens_of_unended(hung_up, streams)
    share = num_tokens / (ended_s - began_s) / (run.peak["output_tokens_per_s"] or 1.0)
    verdict.check(share >= MIN_GOODPUT, f"throughput {share:.0%} of that at the target (required: {MIN_GOODPUT:.0%})")
    back_s = await back_to_normal_s(run.driver, run.settings.shape, run.normal_ttft_s, NORMAL_WITHIN_S)
    text = "never" if back_s is None else f"after {back_s:.1f} s"
    verdict.check(back_s is not None, f"latency back to normal {text} (within {NORMAL_WITHIN_S:.0f} s)")
    return verdict


async def _chaos(run: Run, seconds: float) -> Verdict:
    await run.need_peak()
    loading = asyncio.create_task(run.closed(run.settings.concurrency, seconds))
    await asyncio.sleep(seconds / 4)
    killed_s, what = time.monotonic(), await asyncio.to_thread(run.site.kill)
    streams, began_s, took_s = await loading
    measured = figures(streams, took_s)
    verdict = Verdict("chaos", figures=measured, timeline=timeline(streams, began_s), marks_s=[killed_s - began_s])
    if not what:
        verdict.check(False, "nothing was killed: give --kill-command")
        return verdict
    verdict.check(not measured["failed"], f"killed {what}: {measured['failed']} of {len(streams)} requests failed")
    back_s = throughput_back_s(streams, killed_s, run.peak["output_tokens_per_s"])
    text = "never" if back_s is None else f"after {back_s:.1f} s"
    verdict.check(
        back_s is not None and back_s <= BACK_WITHIN_S, f"throughput back {text} (within {BACK_WITHIN_S:.0f} s)"
    )
    silence_s = longest_silence_s(streams, killed_s)
    verdict.check(silence_s <= MAX_SILENCE_S, f"longest time without a token of any stream: {silence_s:.1f} s")
    is_whole = await _until_whole(run.site, killed_s)
    verdict.check(is_whole, f"every service is back, checked {time.monotonic() - killed_s:.1f} s after the kill")
    return verdict


_PHASES: dict[str, Callable[[Run, float], Awaitable[Verdict]]] = {
    "baseline": _baseline,
    "ramp": _ramp,
    "sustained": _sustained,
    "overload": _overload,
    "chaos": _chaos,
}


async def _until_whole(site: Site, since_s: float) -> bool:
    while not await asyncio.to_thread(site.is_whole):
        if time.monotonic() > since_s + BACK_WITHIN_S:
            return False
        await asyncio.sleep(0.1)
    return True


def _levels(target: int) -> list[int]:
    """Return 1, 2, 4 and so on up to the target, and the target."""
    return [*itertools.takewhile(lambda level: level < target, (2**i for i in itertools.count())), target]


def _few(num_failed: int, number: int) -> bool:
    return num_failed < MAX_ERRORS * number


def _p99s(streams: list[Stream], middle_s: float, metric: str) -> tuple[float, float]:
    halves: tuple[list[float], list[float]] = ([], [])
    for stream in streams:
        if stream.ok and (stream.has_tpot or metric != "tpot"):
            halves[stream.began >= middle_s].append(getattr(stream, f"{metric}_s"))
    return percentile(halves[0], 99), percentile(halves[1], 99)
