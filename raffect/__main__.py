"""`python -m raffect` is `raffect`."""

import sys

from raffect.cli import main

if __name__ == "__main__":
    sys.exit(main())
