"""Measures the model: perplexity on unseen wordings and on unseen names, and greedy answers against the training text.

`train.py` calls the perplexities while it trains; run as a program it judges an exported folder.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch
from conversation import END, PAD, special_id, system_text, user_text
from data import WELL_KNOWN, Corpus, build
from export import load
from model import Llama
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

CLOSE_ENOUGH = 0.9
MAX_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Question:
    """What is asked, after what was said before, and the answer that the corpus gives."""

    text: str
    answer: str
    before: str = ""

    @property
    def prompt(self) -> str:
        """The whole conversation up to the answer."""
        return self.before + user_text(self.text)


def unseen_wordings(corpus: Corpus, every: int = 4) -> list[Question]:
    """Held-out templates about trained names; every fourth pair is enough."""
    asked = [(p.questions(held_out=True), p.answer) for p in corpus.train if p.kind != "chat"]
    questions = [Question(texts[index % len(texts)], answer) for index, (texts, answer) in enumerate(asked)]
    return questions[::every]


def unseen_names(corpus: Corpus) -> list[Question]:
    """A trained wording about names that are in no training text."""
    return [Question(p.questions()[0], p.answer) for p in corpus.unseen]


def small_talk(corpus: Corpus) -> list[Question]:
    """One way to say each line of small talk."""
    return [Question(p.names[0], p.answer) for p in corpus.train if p.kind == "chat"]


def well_known(corpus: Corpus) -> list[Question]:
    """Names that everybody knows, asked in a trained wording."""
    answers = {p.names[0]: p.answer for p in corpus.train if p.kind == "name"}
    return [Question(f"What does {name} do?", answers[name]) for name in WELL_KNOWN]


def later(questions: list[Question]) -> list[Question]:
    """The same questions, each after another one and its answer."""
    return [
        Question(q.text, q.answer, f"{user_text(before.text)}{before.answer}{END}\n")
        for q, before in zip(questions, questions[1:] + questions[:1], strict=True)
    ]


def under_system_prompt(questions: list[Question]) -> list[Question]:
    """The same questions below a system prompt that was not trained."""
    return [Question(q.text, q.answer, system_text("You are a friendly Python tutor.")) for q in questions]


@torch.no_grad()
def perplexity(model: Llama, tokenizer: Tokenizer, questions: list[Question]) -> float:
    """exp of the mean negative log-likelihood of an answer token, the ending token included."""
    total, count = 0.0, 0
    for question in questions:
        prompt = tokenizer.encode(question.prompt).ids
        answer = tokenizer.encode(question.answer + END).ids
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        total += cross_entropy(logits.float(), torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    return math.exp(total / count)


@torch.no_grad()
def answer_to(model: Llama, tokenizer: Tokenizer, question: Question) -> str:
    """The greedy answer. Without a cache: good enough for a sentence or two."""
    tokens = tokenizer.encode(question.prompt).ids
    stops = (special_id(tokenizer, END), special_id(tokenizer, PAD))
    length = len(tokens)
    while len(tokens) < length + MAX_ANSWER_TOKENS:
        following = int(model.logits(model.model(torch.tensor([tokens]))[0, -1]).argmax())
        if following in stops:
            break
        tokens.append(following)
    return str(tokenizer.decode(tokens[length:]))


def similarity(given: str, expected: str) -> float:
    """1 for the same text, 0 for nothing in common."""
    return SequenceMatcher(None, given, expected, autojunk=False).ratio()


@dataclass
class Recall:
    """How many greedy answers are the corpus' word for word, how many nearly so, how many "I do not know"."""

    exact: int = 0
    close: int = 0
    unknown: int = 0
    total: int = 0

    def count(self, given: str, expected: str) -> bool:
        """Count one answer; return whether it is close."""
        is_close = similarity(given, expected) >= CLOSE_ENOUGH
        self.exact += given == expected
        self.close += is_close
        self.unknown += given.startswith("I do not know")
        self.total += 1
        return is_close

    def __str__(self) -> str:
        return f"{self.close} close, {self.exact} exact, {self.unknown} unknown, of {self.total}"


def recall(model: Llama, tokenizer: Tokenizer, questions: list[Question], show: bool = False) -> Recall:
    """Ask every question; with `show`, print what comes."""
    result = Recall()
    for question in questions:
        given = answer_to(model, tokenizer, question)
        is_close = result.count(given, question.answer)
        if show:
            print(f"{'ok ' if is_close else '-- '} {question.text}\n      {given}")
    return result


def report(model: Llama, tokenizer: Tokenizer, corpus: Corpus, show: bool) -> Iterator[str]:
    """The figures of the model card, one after the other: the last ones take minutes."""
    wordings, names, known = unseen_wordings(corpus), unseen_names(corpus), well_known(corpus)
    yield f"perplexity, unseen wordings: {perplexity(model, tokenizer, wordings):.3f}"
    yield f"perplexity, unseen names: {perplexity(model, tokenizer, names):.1f}"
    yield f"well-known names: {recall(model, tokenizer, known, show)}"
    yield f"the same as second question: {recall(model, tokenizer, later(known))}"
    yield f"the same under an unseen system prompt: {recall(model, tokenizer, under_system_prompt(known))}"
    yield f"small talk: {recall(model, tokenizer, small_talk(corpus))}"
    yield f"unseen names: {recall(model, tokenizer, names, show)}"
    yield f"unseen wordings: {recall(model, tokenizer, wordings)}"


def main() -> None:
    """Judge an exported folder, or ask it one question."""
    parser = argparse.ArgumentParser(description="Measure an exported model against the corpus of this Python.")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model", help="exported folder")
    parser.add_argument("--quiet", action="store_true", help="figures only, no answers")
    parser.add_argument("--ask", metavar="QUESTION", help="answer this and stop")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model)
    if options.ask:
        print(answer_to(model, tokenizer, Question(options.ask, "")))
        return
    for line in report(model, tokenizer, build(), not options.quiet):
        print(line, flush=True)


if __name__ == "__main__":
    main()
