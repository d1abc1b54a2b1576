"""Trains the default model from scratch: tokenizer, then weights, then export.

The budget is time and not steps: the learning rate falls with the share of the minutes spent, so the run ends fully
annealed on whatever machine it runs. It can be stopped, and goes on from `--checkpoint`; only time spent training
counts.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conversation import IGNORE, Packer, Sampler, train_tokenizer
from data import Corpus, build
from evaluate import Question, answer_to, perplexity, unseen_names, unseen_wordings
from export import export
from model import Llama, ModelConfig
from muon import Muon
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WARM_UP_SHARE = 0.01
SAVE_MINUTES = 5.0
# A step that takes longer was compiling or suspended, and must not eat the schedule.
MAX_STEP_S = 60.0
SAMPLE = Question("What does itertools.chain do?", "")


def learning_rate_share(progress: float) -> float:
    """Linear warm-up, then linear decay to nothing; `progress` is the share of the time budget spent."""
    return min(max(progress, 1e-5) / WARM_UP_SHARE, 1.0) * max(0.0, 1.0 - progress)


def make_optimizers(model: Llama, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns rare facts in fewer steps; AdamW for the rest."""
    betas = (0.9, 0.95)
    if options.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=options.lr, betas=betas, weight_decay=0.01)]
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    muon = Muon(matrices, lr=options.lr_muon, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=options.lr, betas=betas, weight_decay=0.0)]


@dataclass
class Progress:
    """What a checkpoint needs besides weights and optimiser state."""

    spent_s: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    loss: float = math.nan
    saved_at_s: float = 0.0
    exported_at_s: float = 0.0

    def note(self, loss: float, num_tokens: int, took_s: float) -> None:
        """Count one step; `loss` is smoothed over about fifty."""
        self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.spent_s += took_s


@dataclass
class Run:
    """One training run: everything it owns."""

    options: argparse.Namespace
    corpus: Corpus
    tokenizer: Tokenizer
    model: Llama
    packer: Packer
    optimizers: list[torch.optim.Optimizer]
    trunk: Callable[[Tensor], Tensor]
    progress: Progress = field(default_factory=Progress)

    @property
    def share(self) -> float:
        """How much of the time budget is spent, from 0 to 1."""
        return float(self.progress.spent_s / (60.0 * self.options.minutes))

    def train(self) -> None:
        """Step until the time is spent, with checkpoints and exports on the way and at the end."""
        while self.share < 1.0:
            self.timed_step()
            self.report()
            if self.is_due(self.progress.saved_at_s, SAVE_MINUTES):
                self.save()
            if self.is_due(self.progress.exported_at_s, self.options.export_minutes):
                self.export()
        self.save()
        self.export()

    def timed_step(self) -> None:
        """Draw a batch, learn from it, and count the time."""
        began = time.monotonic()
        tokens, labels = self.packer.batch()
        loss = self.step(tokens, labels)
        self.progress.note(loss, tokens.numel(), min(time.monotonic() - began, MAX_STEP_S))

    def step(self, tokens: Tensor, labels: Tensor) -> float:
        """One update; the loss before it."""
        self.set_learning_rates(learning_rate_share(self.share))
        loss = self.loss(tokens, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    def set_learning_rates(self, share: float) -> None:
        """Give every group its share of its own peak, which the group remembers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak_lr", group["lr"]) * share

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over answer tokens; only their hidden states reach the head."""
        is_answer = labels != IGNORE
        logits = self.model.logits(self.trunk(tokens)[is_answer])
        return cross_entropy(logits, labels[is_answer])

    def is_due(self, last_s: float, minutes: float) -> bool:
        """Say whether that many minutes of training have passed since `last_s`."""
        return self.progress.spent_s - last_s >= 60.0 * minutes

    def report(self) -> None:
        """Print a line of progress every so many steps."""
        p = self.progress
        if p.num_steps % self.options.report_steps:
            return
        epoch, rate = self.packer.sampler.num_epochs, p.num_tokens / p.spent_s
        line = f"step {p.num_steps} {self.share:6.1%} epoch {epoch} loss {p.loss:.4f} {rate:.0f} tok/s"
        print(line, flush=True)

    def save(self) -> None:
        """Write a checkpoint, atomically, and say how well the model does."""
        self.progress.saved_at_s = self.progress.spent_s
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": vars(self.progress),
            "tokenizer": self.tokenizer.to_str(),
            "num_epochs": self.packer.sampler.num_epochs,
        }
        part = self.options.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.options.checkpoint)
        print(self.measure(), flush=True)

    def measure(self) -> str:
        """Perplexity on a sixteenth of the unseen wordings and on all unseen names, and a sample."""
        wordings = perplexity(self.model, self.tokenizer, unseen_wordings(self.corpus, every=16))
        names = perplexity(self.model, self.tokenizer, unseen_names(self.corpus))
        sample = answer_to(self.model, self.tokenizer, SAMPLE)
        return f"perplexity {wordings:.3f} on unseen wordings, {names:.0f} on unseen names | {sample}"

    def export(self) -> None:
        """Refresh the exported folder."""
        self.progress.exported_at_s = self.progress.spent_s
        export(self.model, self.tokenizer, self.options.out)

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `save` wrote."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        self.packer.sampler.num_epochs = state["num_epochs"]


def prepare(options: argparse.Namespace) -> Run:
    """Build the run, from its checkpoint where there is one."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus, config = build(), ModelConfig()
    state = torch.load(options.checkpoint, weights_only=True) if options.checkpoint.exists() else None
    tokenizer = Tokenizer.from_str(state["tokenizer"]) if state else train_tokenizer(corpus, config.vocab_size)
    model = Llama(config)
    # A resumed run draws other wordings than it did at its start.
    rng = random.Random(options.seed + (state["progress"]["num_steps"] if state else 0))
    packer = Packer(Sampler(corpus, tokenizer, rng), options.batch_tokens)
    trunk = torch.compile(model.model, dynamic=False) if options.compile else model.model
    run = Run(options, corpus, tokenizer, model, packer, make_optimizers(model, options), trunk)
    if state:
        run.resume(state)
    return run


def describe(run: Run) -> str:
    """The size of the corpus and of the model."""
    turns = [run.packer.sampler.turn(p.questions()[0], p.answer) for p in run.corpus.train]
    num_tokens = sum(len(t.tokens) for t in turns)
    num_answer_tokens = num_tokens - sum(t.num_prompt_tokens for t in turns)
    size = sum(p.numel() for p in run.model.parameters()) / 1e6
    epoch = f"{num_tokens} tokens an epoch ({num_answer_tokens} of answers)"
    return f"{len(turns)} pairs, {epoch}, {size:.2f}M parameters"


def parse_options() -> argparse.Namespace:
    """The command line."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description="Train the default model from scratch on the documentation of the running Python.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=95.0, help="time budget")
    add("--out", type=Path, default=folder / "model", help="folder of the exported model")
    add("--checkpoint", type=Path, default=folder / "checkpoint.pt", help="where to save, and resume if it exists")
    add("--export-minutes", type=float, default=20.0, help="how often the export is refreshed")
    add("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    add("--batch-tokens", type=int, default=2048, help="tokens of a step")
    add("--optimizer", choices=("muon", "adamw"), default="muon", help="what updates the layers")
    add("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    add("--lr-muon", type=float, default=4e-3, help="peak learning rate of Muon")
    add("--compile", action="store_true", help="torch.compile the layers (on a CPU this needs a C++ compiler)")
    add("--report-steps", type=int, default=50, help="steps between lines of progress")
    add("--seed", type=int, default=0, help="of the weights and of the order of the data")
    return parser.parse_args()


def main() -> None:
    """Train, from the start or from where the last run stopped."""
    run = prepare(parse_options())
    print(describe(run), flush=True)
    run.train()


if __name__ == "__main__":
    main()
