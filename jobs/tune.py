"""`ray job submit --working-dir . --runtime-env cluster/runtime-env.yaml -- python jobs/tune.py RECIPE --task expr --bank B --labels L --out RUN ...`: the words of `raffect tune`; the last line is JSON."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # the uploaded tree comes before an installed raffect

from raffect.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("tune", sys.argv[1:]))
