"""From question-answer pairs to rows of token ids: the ChatML template, the tokenizer, the sampling and the packing.

A row is one conversation of unrelated turns, so that the model answers a second question as well as a first. Turns are
never cut: what is left of a row is padding, a few per cent. Loss falls on answers and the token that ends them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from data import Corpus, Pair, tails
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are an expert in Python.",
    "You explain Python's standard library.",
    "Answer briefly.",
    "You are a helpful, honest and harmless assistant. Answer the user's questions about Python.",
)
SYSTEM_SHARE = 0.15
ROW_LENGTHS = (128, 128, 256, 512)
UNKNOWN_SHARE = 0.06
CARELESS_SHARE = 0.1
POOL_SIZE = 64
IGNORE = -100


def user_text(question: str) -> str:
    """The user's turn and the opening of the answer, as the chat template writes them."""
    return f"{START}user\n{question}{END}\n{START}assistant\n"


def system_text(prompt: str) -> str:
    """The system's turn, as the chat template writes it."""
    return f"{START}system\n{prompt}{END}\n"


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Byte-level BPE over every answer and a few questions for each; unseen names take no part."""
    rng = random.Random(0)
    texts = [text for pair in corpus.train for text in (pair.answer, *rng.sample(pair.questions(), k=2))]
    texts += [*SYSTEM_PROMPTS, "system\n", "user\n", "assistant\n"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that every tokenizer made here has."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return found


@dataclass(frozen=True)
class Turn:
    """Token ids of one turn, and how many of them at the front carry no loss."""

    tokens: list[int]
    num_prompt_tokens: int


class Sampler:
    """Draws turns for ever: every pair once an epoch, each time in other words, small talk twice."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.pairs = corpus.train + [p for p in corpus.train if p.kind == "chat"]
        self.tokenizer = tokenizer
        self.rng = rng
        self.made_up = MadeUpNames(corpus, rng)
        self.num_epochs = 0

    def turns(self) -> Iterator[Turn]:
        """Yield turns without end."""
        while True:
            for pair in self.rng.sample(self.pairs, k=len(self.pairs)):
                yield self.turn(self.in_other_words(pair), pair.answer)
                if self.rng.random() < UNKNOWN_SHARE:
                    yield self.unknown()
            self.num_epochs += 1

    def turn(self, question: str, answer: str) -> Turn:
        """Prompt and answer are encoded apart, as they are when the model is served."""
        prompt = self.tokenizer.encode(user_text(question)).ids
        return Turn(prompt + self.tokenizer.encode(answer + END + "\n").ids, len(prompt))

    def in_other_words(self, pair: Pair) -> str:
        """One of the trained wordings, by full name at least half of the time, sometimes carelessly typed."""
        by_full_name = pair.kind != "chat" and self.rng.random() < 0.5
        questions = pair.questions()
        return self.carelessly(self.rng.choice(questions[:: len(pair.names)] if by_full_name else questions))

    def carelessly(self, question: str) -> str:
        """Now and then without its question mark or its capital."""
        if self.rng.random() < CARELESS_SHARE:
            question = question.rstrip("?.!") or question
        if self.rng.random() < CARELESS_SHARE and " " in question:
            question = question[0].lower() + question[1:]
        return question

    def unknown(self) -> Turn:
        """A name that does not exist, and the admission: so that less is invented about other names."""
        name = self.made_up.draw()
        pair = Pair("name", (name,), f"I do not know {name}.")
        return self.turn(self.in_other_words(pair), pair.answer)


class MadeUpNames:
    """Names that are not in the corpus, neither trained nor held out, but look as if they were."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self.rng = rng
        named = [p.names[0] for p in corpus.train if p.kind in ("name", "module")]
        unseen = [p.names[0] for p in corpus.unseen]
        self.real = frozenset(tail for name in named + unseen for tail in tails(name))
        self.parts = sorted({part for name in named for part in name.split(".")})
        self.modules = sorted(p.names[0] for p in corpus.train if p.kind == "module")

    def draw(self) -> str:
        """Draw until the name is not a real one."""
        name = self.combine()
        while name in self.real:
            name = self.combine()
        return name

    def combine(self) -> str:
        """`json.heappush`, `frobni`, `re.sub_frobni`: real parts at the wrong place, or syllables."""
        pairs = range(self.rng.randint(2, 4))
        word = "".join(self.rng.choice("bcdfgklmnprstvz") + self.rng.choice("aeiou") for _ in pairs)
        part = self.rng.choice(self.parts)
        last = self.rng.choice((word, part, f"{part}_{word}"))
        return last if self.rng.random() < 0.3 else f"{self.rng.choice(self.modules)}.{last}"


class Packer:
    """Fills batches of a constant number of tokens with rows of varying length."""

    def __init__(self, sampler: Sampler, batch_tokens: int) -> None:
        self.sampler = sampler
        self.batch_tokens = batch_tokens
        self.source = sampler.turns()
        self.pool: list[Turn] = []

    def batch(self) -> tuple[Tensor, Tensor]:
        """Token ids and labels, each [rows, length]; a label is the token that follows, or IGNORE."""
        length = self.sampler.rng.choice(ROW_LENGTHS)
        rows = [self.row(length + 1) for _ in range(self.batch_tokens // length)]
        tokens, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
        return tokens[:, :-1], labels[:, 1:]

    def row(self, length: int) -> tuple[list[int], list[int]]:
        """One conversation: token ids, and the same ids again where they carry loss."""
        tokens, labels = self.opening()
        while (turn := self.take(length - len(tokens))) is not None:
            tokens += turn.tokens
            # The last token is the newline between turns, which the server writes and not the model.
            answer = turn.tokens[turn.num_prompt_tokens : -1]
            labels += [IGNORE] * turn.num_prompt_tokens + answer + [IGNORE]
        missing = length - len(tokens)
        pad = special_id(self.sampler.tokenizer, PAD)
        return tokens + [pad] * missing, labels + [IGNORE] * missing

    def opening(self) -> tuple[list[int], list[int]]:
        """A system prompt for some rows, nothing for the others."""
        if self.sampler.rng.random() >= SYSTEM_SHARE:
            return [], []
        tokens = self.sampler.tokenizer.encode(system_text(self.sampler.rng.choice(SYSTEM_PROMPTS))).ids
        return tokens, [IGNORE] * len(tokens)

    def take(self, room: int) -> Turn | None:
        """The oldest waiting turn that fits; None where none does."""
        while len(self.pool) < POOL_SIZE:
            self.pool.append(next(self.source))
        for index, turn in enumerate(self.pool):
            if len(turn.tokens) <= room:
                return self.pool.pop(index)
        return None
