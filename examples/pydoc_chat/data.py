"""Turns the documentation that comes with the running Python into questions and answers.

An answer is a name and the first sentence or two of its docstring; keywords and topics come from pydoc's help topics.
Written by hand are `corpus.ini` (which names, and in which words they are asked about), `small_talk.txt`, and, where a
docstring says too little, `corrections.txt`. The result depends on these and on the Python version only. Cleaning a
docstring is left to `docstrings.py`; tokenising, sampling and packing to `conversation.py`.
"""

import argparse
import builtins
import importlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from pydoc import Helper
from pydoc_data.topics import topics

from docstrings import summary, topic_summary

FOLDER = Path(__file__).parent


def read_contents() -> ConfigParser:
    """`corpus.ini`, with the case of names kept."""
    contents = ConfigParser(interpolation=None, delimiters=("=",))
    contents.optionxform = str  # type: ignore[assignment, method-assign]
    contents.read(FOLDER / "corpus.ini", encoding="utf-8")
    return contents


def read_corrections() -> dict[str, str]:
    """Full name -> answer."""
    lines = (FOLDER / "corrections.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


CONTENTS = read_contents()
CORRECTIONS = read_corrections()
MODULES = CONTENTS["modules"]["explained"].split()
WELL_KNOWN = tuple(CONTENTS["evaluation"]["well_known"].split())
UNSEEN = frozenset(CONTENTS["evaluation"]["unseen"].split())


@dataclass(frozen=True)
class Pair:
    """One thing to know. `names` are the ways to ask for it, the full one first."""

    kind: str
    names: tuple[str, ...]
    answer: str

    def questions(self, held_out: bool = False) -> list[str]:
        """Every wording the model is trained on, or with `held_out` those it is only measured on."""
        section = CONTENTS["held out templates" if held_out else "templates"]
        templates = section.get(self.kind, "").strip().splitlines()
        return [t.replace("{n}", n) for t in templates for n in self.names]


@dataclass(frozen=True)
class Corpus:
    """`train` is learned; `unseen` holds names that are in no training text."""

    train: list[Pair]
    unseen: list[Pair]


def public(owner: object) -> Iterator[tuple[str, object]]:
    """Names without an underscore in front, and their values."""
    for name in sorted(vars(owner)):
        if not name.startswith("_") and (value := getattr(owner, name, None)) is not None:
            yield name, value


def is_documented(value: object) -> bool:
    """Say whether this is a class or callable whose docstring is its own and not that of its type."""
    return callable(value) and getattr(value, "__doc__", None) not in (None, type(value).__doc__)


def module_names(path: str) -> list[str]:
    """List the names of a module that are worth a question."""
    module = importlib.import_module(path)
    if path in CONTENTS["chosen"]:
        return [n for n in CONTENTS["chosen"][path].split() if hasattr(module, n)]
    if path in CONTENTS["modules"]["whole"].split():
        return []
    own = (n for n, value in public(module) if is_of_module(value, path))
    return sorted(n for n in getattr(module, "__all__", own) if not n.startswith("_") and not n.isupper())


def is_of_module(value: object, path: str) -> bool:
    """Say whether a value was made in the module, or in the C module of the same name behind it."""
    origin = inspect.getmodule(value)
    return origin is None or origin.__name__ in (path, f"_{path}")


def members(path: str) -> Iterator[tuple[str, object]]:
    """Full names and values of what a module offers."""
    module = importlib.import_module(path)
    for name in module_names(path):
        value = getattr(module, name)
        if is_documented(value) and not (inspect.isclass(value) and issubclass(value, Warning)):
            yield f"{path}.{name}", value


def methods(prefix: str, owner: object) -> Iterator[tuple[str, object]]:
    """Full names and values of what a class offers."""
    return ((f"{prefix}.{n}", v) for n, v in public(owner) if is_documented(v) and not n.isupper())


def resolve(path: str) -> object:
    """`module.Class` -> the class."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documented() -> Iterator[tuple[str, object]]:
    """Every (full name, object) that is to be explained."""
    yield from ((n, v) for n, v in public(builtins) if is_documented(v))
    for name in CONTENTS["classes"]["builtin"].split():
        yield from methods(name, getattr(builtins, name))
    for path in MODULES:
        yield from members(path)
    for path in CONTENTS["classes"]["imported"].split():
        yield from methods(path, resolve(path))


def tails(full: str) -> list[str]:
    """`os.path.join` -> itself, `path.join`, `join`."""
    parts = full.split(".")
    return [".".join(parts[cut:]) for cut in range(len(parts))]


def constants() -> dict[str, str]:
    """Values, which have no docstring: all that is known of them is a correction."""
    return {name: CORRECTIONS[name] for name in CONTENTS["constants"]["names"].split()}


def name_pairs() -> Iterator[Pair]:
    """Everything with a docstring, also under those shorter names that mean one thing only."""
    found = {name: CORRECTIONS.get(name) or summary(inspect.getdoc(value)) for name, value in documented()}
    found = {name: text for name, text in found.items() if text} | constants()
    taken = Counter([*MODULES, *Helper.keywords])
    meanings = Counter(tail for name in found for tail in tails(name)) + taken
    for name, text in found.items():
        shorter = (tail for tail in tails(name)[1:] if meanings[tail] == 1)
        yield Pair("name", (name, *shorter), f"{name}: {text}")


def module_pairs() -> Iterator[Pair]:
    """Modules as a whole."""
    for name in MODULES:
        if text := CORRECTIONS.get(name) or summary(importlib.import_module(name).__doc__):
            yield Pair("module", (name,), f"{name}: {text}")


def help_text(entry: object) -> str:
    """What pydoc would open for a keyword or topic: its tables map a name to (label, cross references)."""
    return topic_summary(topics.get(str(entry[0] if isinstance(entry, tuple) else entry), ""))


def keyword_pairs() -> Iterator[Pair]:
    """Python's keywords."""
    for name, entry in sorted(dict(Helper.keywords).items()):
        if text := CORRECTIONS.get(name) or help_text(entry):
            yield Pair("keyword", (name,), f"{name}: {text}")


def topic_pairs() -> Iterator[Pair]:
    """Topics of pydoc's help, under a spoken name and under pydoc's."""
    for name, spoken in CONTENTS["topics"].items():
        if text := CORRECTIONS.get(spoken) or help_text(dict(Helper.topics)[name]):
            yield Pair("topic", (spoken, name), f"{spoken}: {text}")


def small_talk() -> Iterator[Pair]:
    """Pairs whose names are whole questions."""
    blocks = (FOLDER / "small_talk.txt").read_text(encoding="utf-8").strip().split("\n\n")[1:]
    for block in blocks:
        questions, answer = block.split("\n")
        yield Pair("chat", tuple(questions.split(" | ")), answer)


def without_repeats(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair for each full name: the first, so that a keyword wins over a builtin of the same name."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.names[0], pair)
    return list(first.values())


def build() -> Corpus:
    """Build the whole corpus."""
    everything = without_repeats([*small_talk(), *keyword_pairs(), *topic_pairs(), *module_pairs(), *name_pairs()])
    unseen = [p for p in everything if p.names[0] in UNSEEN]
    return Corpus([p for p in everything if p not in unseen], unseen)


def main() -> None:
    """Print the training pairs."""
    parser = argparse.ArgumentParser(description="Print the corpus: kind, first question, names and answer.")
    parser.add_argument("--kind", choices=sorted(CONTENTS["templates"]), help="only this kind")
    options = parser.parse_args()
    for pair in build().train:
        if options.kind in (None, pair.kind):
            print(f"[{pair.kind}] {pair.questions()[0]}\t{'|'.join(pair.names)}\t{pair.answer}")


if __name__ == "__main__":
    main()
