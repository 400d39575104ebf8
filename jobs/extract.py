"""`ray job submit --working-dir . -- python jobs/extract.py --manifest M --bank B ...`: the flags of `raffect extract`."""

import sys

from raffect.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
