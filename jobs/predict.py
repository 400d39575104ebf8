"""`raffect predict` as a job, with the same words; its last line is JSON.

    ray job submit --working-dir . --runtime-env cluster/runtime-env.yaml -- \\
        python jobs/predict.py /data/videos --head /data/runs/expr --out /data/predictions \\
        --address auto
"""

import sys
from pathlib import Path

# The uploaded tree comes before an installed raffect.
sys.path.insert(0, str(Path(__file__).parents[1]))

from raffect.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("predict", sys.argv[1:]))
