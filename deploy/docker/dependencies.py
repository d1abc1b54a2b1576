"""The dependencies of pyproject.toml as requirements: an image's layer of them outlives changes of the code."""

import argparse
import re
import tomllib
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="names that the image does without")
    args = parser.parse_args()
    for requirement in tomllib.loads(args.pyproject.read_text())["project"]["dependencies"]:
        if re.match(r"[\w.-]+", requirement)[0] not in args.without:
            print(requirement)
