"""Joins the index with the catalogue, and finds the cheapest search that reaches the target recall.

python -m pipelines.calibrate --output DIR [--target_recall 0.95]
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("calibrate", __doc__))
