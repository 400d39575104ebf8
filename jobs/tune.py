"""`ray job submit --working-dir . -- python jobs/tune.py RECIPE --task expr --bank B --labels L --out RUN ...`: the words of `raffect tune`."""

import sys

from raffect.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
