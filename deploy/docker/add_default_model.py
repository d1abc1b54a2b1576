"""Copies the built-in model to where the installed `baton` looks for it, so that the image serves it by default."""

import shutil
import sys

from baton.model_source import DEFAULT_MODEL

if __name__ == "__main__":
    shutil.copytree(sys.argv[1], DEFAULT_MODEL)
