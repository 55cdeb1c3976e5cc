"""Trains the two towers on what `ingest` kept for training.

python -m pipelines.train --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("train", __doc__))
