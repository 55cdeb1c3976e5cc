"""Checks every row of the finished table, and compares it with the last release's table.

python -m pipelines.judge --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("judge", __doc__))
