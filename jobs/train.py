"""`ray job submit --working-dir . -- python jobs/train.py RECIPE --task expr --bank B --labels L --out RUN ...`: the words of `raffect train`."""

import sys

from raffect.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
