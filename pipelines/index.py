"""Builds the sharded index of the candidates.

python -m pipelines.index --output DIR [--num_shards N]
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("index", __doc__))
