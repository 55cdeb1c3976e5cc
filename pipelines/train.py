"""Trains the two towers on the training part of the ratings.

python -m pipelines.train --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("train", __doc__))
