"""What answers show of prompts, made from a node's columns."""

import pytest

from baton.v1.prompt_pb2 import PromptLogprobs
from router.job import PromptResult, PromptWork
from router.openai.prompt_part import PromptPart

TEXT = "Größe, 🎉!"


@pytest.fixture
def token_ids(served_model):
    return served_model.tokenizer.encode(TEXT)


@pytest.fixture
def result(token_ids):
    """Two alternatives each, in parts of three positions: the token itself comes second, at rank 7."""
    parts = []
    for start in range(1, len(token_ids), 3):
        ids = token_ids[start : start + 3]
        parts.append(
            PromptLogprobs(
                position=start,
                logprobs=[-float(start + i) for i in range(len(ids))],
                ranks=[7] * len(ids),
                num_top=2,
                top_token_ids=[other for _ in ids for other in (20, 21)],
                top_logprobs=[-0.5, float("-inf")] * len(ids),
            )
        )
    return PromptResult(parts)


def part(served_model, token_ids, **options):
    return PromptPart(token_ids, served_model.token_texts, **options)


def test_prompt_work_for_each_combination_of_options(served_model, token_ids):
    assert part(served_model, token_ids).work(5) is None
    assert part(served_model, token_ids, echo=TEXT).work(5) is None
    assert part(served_model, token_ids, echo=TEXT).work(0) == PromptWork()
    both = part(served_model, token_ids, echo=TEXT, num_echo_logprobs=2, num_prompt_logprobs=5)
    assert both.work(5) == PromptWork(num_logprobs=5)


def test_entries_of_an_echo(served_model, token_ids, result):
    shown = part(served_model, token_ids, echo=TEXT, num_echo_logprobs=1)
    shown.take(result)
    assert b"".join(entry.token for entry in shown.entries).decode() == TEXT
    assert [entry.logprob for entry in shown.entries] == [None, *(-float(i) for i in range(1, len(token_ids)))]
    assert (shown.entries[0].top, [len(entry.top) for entry in shown.entries[1:]]) == ([], [1] * (len(token_ids) - 1))
    for entry in shown.entries:  # tokens that are whole characters stand where they say
        text = entry.token.decode(errors="replace")
        assert "\ufffd" in text or TEXT[entry.offset : entry.offset + len(text)] == text
    assert shown.logprobs is None


def test_offsets_stay_within_an_echo_that_is_shorter_than_its_tokens(served_model, token_ids, result):
    shown = part(served_model, token_ids, echo="Gr", num_echo_logprobs=0)
    shown.take(result)
    assert max(entry.offset for entry in shown.entries) == 2


def test_prompt_logprobs_contain_the_token_itself_with_its_rank(served_model, token_ids, result):
    shown = part(served_model, token_ids, num_prompt_logprobs=2)
    shown.take(result)
    first, *others = shown.logprobs
    assert first is None
    for position, row in enumerate(others, 1):
        own = token_ids[position]
        assert list(row) == ["20", "21", str(own)]
        assert [about["rank"] for about in row.values()] == [1, 2, 7]
        assert row["21"]["logprob"] == -9999.0
        assert row[str(own)]["logprob"] == -float(position)
    assert shown.entries == []
