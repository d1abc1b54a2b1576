"""Flags that several commands have in common: `baton bench serve`, `disagg` and `plan`, `baton loadtest` and `plan`."""

import argparse

from bench._load.workload import FIRST_TOKEN


def add_key(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the variable with the API key; `target.target_of` reads it."""
    text = "variable with the API key (default: BATON_API_KEY, OPENAI_API_KEY)"
    parser.add_argument("--api-key-env", default="", metavar="NAME", help=text)


def add_lengths(parser: argparse.ArgumentParser, prompt: str, output: str) -> None:
    """Add the flags for the lengths of prompts and outputs, with these defaults; `lengths.parse` reads them."""
    text = "N, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA"
    parser.add_argument("--prompt-tokens", default=prompt, help=text)
    parser.add_argument("--output-tokens", default=output, help="as --prompt-tokens")


def add_vocab_size(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the tokens of random prompts."""
    text = "draw prompts from token ids 100 up to this one"
    parser.add_argument("--vocab-size", type=_vocab_size, default=4000, metavar="INT", help=text)


def _vocab_size(text: str) -> int:
    if not text.isdecimal() or int(text) <= FIRST_TOKEN:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above {FIRST_TOKEN}")
    return int(text)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the files of a report."""
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--html", metavar="FILE", help="also write a report with plots to this file")
