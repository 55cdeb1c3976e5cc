"""Writes the top-k items of every user, and measures their quality.

python -m pipelines.recommend --output DIR [--k 100]
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("recommend", __doc__))
