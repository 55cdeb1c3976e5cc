"""Judges the finished table, row by row, and beside the last release's.

python -m pipelines.judge --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("judge", __doc__))
