"""`python -m router`."""

import sys

from router.server import main

if __name__ == "__main__":
    sys.exit(main())
