"""Prints the dependencies of pyproject.toml as requirements, so that an image layer with them survives code changes."""

import argparse
import re
import tomllib
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="packages to leave out")
    args = parser.parse_args()
    for requirement in tomllib.loads(args.pyproject.read_text())["project"]["dependencies"]:
        if re.match(r"[\w.-]+", requirement)[0] not in args.without:
            print(requirement)
