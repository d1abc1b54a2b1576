"""What the phases of a load test watch, and how they reach a verdict."""

import asyncio
import itertools
from pathlib import Path

import pytest

from baton.errors import BatonError
from bench._load import lengths
from bench._load.sse_client import Stream
from bench._load.target import Target
from bench._load.workload import Shape
from fleet import cli
from fleet.loadtest import phases as loadtest_phases
from fleet.loadtest import report as loadtest_report
from fleet.loadtest import watch as loadtest_watch
from fleet.loadtest.run import PHASES, Run, Settings
from fleet.loadtest.site import RemoteSite, Site
from fleet.loadtest.verdict import Verdict
from tests.waiting import until

MIB = 2.0**20
SETTINGS = Settings(Shape("m", lengths.parse("4"), lengths.parse("4")), 4, 5.0, total_s=100.0)


class Known(Site):
    """A fleet with known memory."""

    def __init__(self, sizes: list[float]) -> None:
        super().__init__(Target("127.0.0.1", 1))
        self._sizes = iter(sizes)

    def memory_bytes(self) -> dict[str, float]:
        return {"decode-0": next(self._sizes)}

    def kill(self) -> str:
        return "nothing"

    def is_whole(self) -> bool:
        return True


def test_memory_is_read_while_the_load_runs():
    async def run() -> dict[str, list[float]]:
        async with loadtest_watch.MemoryWatch(Known([1.0, 2.0, 3.0]), 0.1) as watch:
            await until(lambda: watch.samples)
        return watch.samples

    assert asyncio.run(run())["decode-0"][0] == 1.0


def streams(*times: list[float]) -> list[Stream]:
    return [Stream(at[0] - 0.1, at, at[-1], 200, 4, 2 * len(at)) for at in times]


def test_throughput_is_back_when_a_second_has_enough_tokens():
    steady = [0.1 * i for i in range(60)]
    slump = [at for at in steady if not 2.0 <= at < 4.0]
    assert loadtest_watch.throughput_back_s(streams(slump), 2.0, tokens_per_s=20.0) == 2.0
    assert loadtest_watch.throughput_back_s(streams(slump), 2.0, tokens_per_s=100.0) is None


def test_silence_is_that_of_all_streams_together():
    one, other = [0.0, 1.0, 6.0], [0.5, 3.0, 5.0]
    assert loadtest_watch.longest_silence_s(streams(one), 1.0) == 5.0
    assert loadtest_watch.longest_silence_s(streams(one, other), 1.0) == 2.0


def test_tokens_of_unfinished_streams_are_estimated_from_events():
    ended, cut = streams([0.0, 1.0]), [Stream(0.0, [0.1, 0.2, 0.3])]
    assert loadtest_watch.tokens_of_unended(cut, ended) == 6.0


def test_phases_share_the_time():
    assert SETTINGS.seconds("sustained") == 60.0
    assert sum(SETTINGS.seconds(name) for name in PHASES) == pytest.approx(100.0)
    alone = Settings(SETTINGS.shape, 4, 5.0, 100.0, ("chaos",))
    assert alone.seconds("chaos") == 100.0


@pytest.mark.parametrize(("target", "levels"), [(2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_levels_double_up_to_the_target(target: int, levels: list[int]):
    assert loadtest_phases._levels(target) == levels


def test_phases_fail_on_an_endpoint_that_is_not_there():
    async def run() -> list[Verdict]:
        site = Known([1.0] * 1000)
        settings = Settings(SETTINGS.shape, 2, 0.5, 0.5, ("baseline", "chaos"))
        original = Run.closed

        async def bounded(self: Run, concurrency: int, seconds: float) -> object:
            self._conversations = itertools.islice(self._conversations, 20)  # refusals return at once
            return await original(self, concurrency, seconds)

        Run.closed = bounded  # type: ignore[method-assign, assignment]
        try:
            return await loadtest_phases.run_all(site, settings, lambda verdict: None)
        finally:
            Run.closed = original  # type: ignore[method-assign]

    assert [verdict.passed for verdict in asyncio.run(run())] == [False, False]


def test_a_kill_command_runs_without_a_shell(tmp_path: Path):
    site = RemoteSite(Target("127.0.0.1", 1), (), f"touch {tmp_path}/a;b")
    assert site.kill()
    assert (tmp_path / "a;b").exists()
    assert RemoteSite(Target("127.0.0.1", 1), (), "").kill() == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt-tokens", "long"], "'long' is not a length"),
        (["--kill-command", "a 'b"], '--kill-command: "a \'b": no closing quotation'),
        (["--metrics-url", "ftp://x"], "'ftp://x' is not the address of an HTTP endpoint"),
    ],
)
def test_flags_are_checked_before_any_load(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["loadtest", "--base-url", "http://127.0.0.1:1", *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_vocabulary_without_tokens_for_prompts_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["loadtest", "--vocab-size", "100"])
    assert "--vocab-size: 100: expected a whole number from 101 to 1,000,000" in capsys.readouterr().err


def test_a_kill_command_that_cannot_be_started_says_why():
    with pytest.raises(BatonError, match="--kill-command: /nowhere/kill x: No such file or directory"):
        RemoteSite(Target("127.0.0.1", 1), (), "/nowhere/kill x").kill()


def test_a_report_contains_every_check(tmp_path: Path):
    verdict = Verdict("baseline", timeline={"at_s": [1.0], "events_per_s": [2.0], "ttft_p50_s": [0.1]})
    verdict.check(True, "fine")
    verdict.check(False, "not fine")
    assert not verdict.passed
    assert loadtest_report.summary([verdict]) == "FAIL: baseline"
    loadtest_report.write_html(tmp_path / "l.html", [verdict], ["m"])
    text = (tmp_path / "l.html").read_text()
    assert "not fine" in text
    assert "class=bad" in text
