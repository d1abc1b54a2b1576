"""Cuts a docstring or a help topic down to the one or two plain sentences that answer a question.

Which names are asked about, and in which words, is left to `data.py`.
"""

import inspect
import re
from collections.abc import Iterable

MAX_ANSWER_CHARS = 230
TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": " ... "})
NOISE = re.compile(
    r"XXX|:return|<==>|\*\*\*|===|[Cc]opyright|https?:|\bArgs?:|\bArguments:|\bSee (also|section|PEP)|<intro| -> .*->"
)
CODE_OR_TABLE = re.compile(r"^\s*(>>>|[-*+=]\s|[-=~+]{3,}|\.\. |\d\.|:?param)|::", re.M)


def strip_signature(doc: str) -> str:
    """Drop the call lines that open many C docstrings: `map(func, *iterables) --> map object`."""
    arrow = re.match(r"^[\w.]+\([^\n]*\)\s*-+>\s*", doc)
    if arrow is None:
        return re.sub(r"^[\w.]+\(.*\)\s*\n+", "", doc)
    rest = doc[arrow.end() :]
    head, _, tail = (part.strip() for part in rest.partition("\n"))
    is_type_only = re.fullmatch(r"[\w.\[\], |]+?\.?", head) and len(head.split()) <= 5
    return tail if is_type_only and tail else rest


def first_paragraphs(doc: str) -> str:
    """The prose before the first doctest, table, list or section, at most two paragraphs, as one line."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc.strip()):
        is_definition_list = kept and re.search(r"^ {3}|\n {2}", paragraph)
        if CODE_OR_TABLE.search(paragraph) or is_definition_list or len(kept) == 2:
            break
        kept.append(paragraph.strip())
    return " ".join(p if p.endswith((".", ":", "!", "?")) else p + "." for p in kept)


def plain(text: str) -> str:
    """One line, without the mark-up of reST and of typewriter quotes."""
    text = re.sub(r"^\([\w,\s]+\)\.?\s|^[\w, \[\]]+ -> ", "", text.translate(TYPOGRAPHY))
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    text = re.sub(r"``?([^`']*)(``?|'')", r"\1", text)
    text = re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def sentences(text: str) -> list[str]:
    """Split after a full stop that a capital follows, but not after "e.g."."""
    guarded = re.sub(r"\b(e\.g|i\.e|etc|vs|cf)\.", lambda m: m[0].replace(".", "\0"), text)
    return [s.replace("\0", ".") for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", guarded)]


def shorten(text: str) -> str:
    """As many whole sentences as fit; empty where even the first does not."""
    kept = ""
    for sentence in sentences(text):
        longer = f"{kept} {sentence}".strip()
        introduces_code = kept and sentence.endswith(":")
        if len(longer) > MAX_ANSWER_CHARS or NOISE.search(sentence) or introduces_code:
            break
        kept = longer
    return re.sub(r"\s*[:;,]$", ".", kept)


def is_worth_learning(text: str) -> bool:
    """Neither a lone word, nor a call line that slipped through, nor a stub that points elsewhere."""
    is_signature = re.match(r"\w+ ?[\[(,].*(->|$)|@|<", text) or text.startswith("A generic version of")
    return len(text.split()) >= 2 and text.isascii() and not is_signature


def summary(doc: str | None) -> str:
    """The answer that a docstring gives, or an empty string where it gives none worth learning."""
    text = shorten(plain(first_paragraphs(strip_signature(inspect.cleandoc(doc or "")))))
    return text[0].upper() + text[1:] if is_worth_learning(text) else ""


def topic_summary(topic: str) -> str:
    """The first prose of a help topic, below its underlined title and beside its grammar."""
    body = re.sub(r"\A.*\n[*=\-~]{3,}\n", "", topic)
    prose = " ".join(list(prose_of(re.split(r"\n\s*\n", body)))[:2])
    return shorten(plain(re.sub(r"\(see [^)]*\)|, see [\w ]+(?=[.,])", "", prose)))


def prose_of(paragraphs: Iterable[str]) -> Iterable[str]:
    """Those that are neither grammar, nor code, nor a heading."""
    return (p for p in paragraphs if "::=" not in p and not p.startswith("   ") and len(p) > 40)
