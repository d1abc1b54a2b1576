"""Flags that several commands have in common: `baton bench serve`, `disagg` and `plan`, `baton loadtest` and `plan`."""

import argparse

from baton.process.bounds import MANY, whole
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
    parser.add_argument("--vocab-size", type=whole(FIRST_TOKEN + 1, MANY), default=4000, help=text)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the files of a report."""
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--html", metavar="FILE", help="also write a report with plots to this file")
