"""The table of `baton chaos`, and the list of broken guarantees."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from fleet.chaos.client import Answer, Choice
from fleet.chaos.faults import Outcome
from fleet.chaos.questions import Question, answers_schema

_COLUMNS = (
    "requests",
    "failovers",
    "failed",
    "differing",
    "first token s",
    "stall s",
    "blocks leaked",
    "back s",
    "recovery s",
)
_MAX_EXAMPLES = 5
_HALF = 2  # half of a pool remains when one of two nodes is lost, so its queue takes twice as long


def differing(outcome: Outcome, reference: Mapping[Question, Answer]) -> list[Answer]:
    """Return the answers that differ from those of the undisturbed fleet."""
    whole = (answer for answer in outcome.answers if not answer.failed)
    return [answer for answer in whole if not answer.same_as(reference[answer.question])]


def table(outcomes: list[Outcome], reference: Mapping[Question, Answer]) -> Table:
    """Return a table with one row per fault."""
    made = Table(box=None, pad_edge=False)
    made.add_column("fault", no_wrap=True)
    for column in _COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for outcome in outcomes:
        made.add_row(
            outcome.fault.name,
            str(len(outcome.answers)),
            str(outcome.num_failovers),
            str(sum(answer.failed for answer in outcome.answers)),
            str(len(differing(outcome, reference))),
            f"{outcome.longest_wait_s:.2f}",
            f"{outcome.longest_stall_s:.2f}",
            str(outcome.num_leaked_blocks),
            f"{outcome.blocks_back_s:.1f}",
            f"{outcome.recovery_s:.1f}",
        )
    return made


def broken_guarantees(outcomes: list[Outcome], reference: Mapping[Question, Answer], max_stall_s: float) -> list[str]:
    """Return one line per broken guarantee. A stream may stall `max_stall_s` longer than is usual without faults.

    A request waits in a queue until its first token, because of the load; a fault may add as much to that wait.
    """
    max_wait_s = max_stall_s + _HALF * max((answer.longest_wait_s for answer in reference.values()), default=0.0)
    max_stall_s += statistics.median([answer.longest_stall_s for answer in reference.values()] or [0.0])
    broken = [f"reference: {answer.question.name}: {answer.error}" for answer in reference.values() if answer.failed]
    for outcome in outcomes:
        problems = (*_of_answers(outcome, reference), *_of_times(outcome, max_stall_s, max_wait_s), *_of_nodes(outcome))
        broken += (f"{outcome.fault.name}: {problem}" for problem in problems)
    return broken


def _of_answers(outcome: Outcome, reference: Mapping[Question, Answer]) -> Iterator[str]:
    failed = [answer for answer in outcome.answers if answer.failed]
    yield from (f"failed: {answer.question.name}: {answer.error}" for answer in failed[:_MAX_EXAMPLES])
    for answer in differing(outcome, reference)[:_MAX_EXAMPLES]:
        yield f"differs: {_difference(answer, reference[answer.question])}"
    yield from (f"breaks its schema: {answer.question.name}" for answer in outcome.answers if _invalid(answer))


def _of_times(outcome: Outcome, max_stall_s: float, max_wait_s: float) -> Iterator[str]:
    if outcome.fault.may_wait:
        return
    if outcome.longest_stall_s > max_stall_s:
        yield f"a stream stalled for {outcome.longest_stall_s:.2f} s"
    if outcome.longest_wait_s > max_wait_s:
        yield f"a first token took {outcome.longest_wait_s:.2f} s"


def _of_nodes(outcome: Outcome) -> Iterator[str]:
    for service, (blocks, requests) in outcome.held.items():
        yield f"{service} holds {blocks} blocks and {requests} requests {outcome.blocks_back_s:.0f} s afterwards"
    most = outcome.fault.max_failovers
    if most is not None and outcome.num_failovers > most:
        yield f"{outcome.num_failovers} attempts failed over, although no service had died"
    if outcome.num_reported_leaks:
        yield f"nodes report {outcome.num_reported_leaks} leaked blocks"
    if outcome.num_lost_blocks:
        yield f"{outcome.num_lost_blocks} blocks are missing from all states"


def _invalid(answer: Answer) -> bool:
    """Return whether a complete answer violates its schema."""
    asked = answer.question.body.get("response_format")
    ends = [choice for choice in answer.choices.values() if choice.finish_reason == "stop"]
    return asked is not None and not all(answers_schema(choice.text) for choice in ends)


def _difference(answer: Answer, reference: Answer) -> str:
    """Describe the first difference between two answers."""
    subject = f"{answer.question.name} ({answer.num_output_tokens} tokens, not {reference.num_output_tokens})"
    for index, choice in sorted(answer.choices.items()):
        expected = reference.choices.get(index, Choice())
        if choice.text != expected.text:
            return f"{subject}: choice {index} from character {_first_difference(choice.text, expected.text)} on"
        if choice.logprobs != expected.logprobs:
            at = _first_difference(choice.logprobs, expected.logprobs)
            return f"{subject}: choice {index}: log-probabilities from token {at} on, although the text is equal"
        if choice != expected:
            return f"{subject}: choice {index} ended by {choice.finish_reason}, not {expected.finish_reason}"
    return subject


def _first_difference(some: Sequence[Any], others: Sequence[Any]) -> int:
    pairs = enumerate(zip(some, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(some), len(others)))
