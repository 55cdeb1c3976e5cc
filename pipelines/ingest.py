"""Reads ratings and items, keeps what cannot be used with its reason, and splits the rest by user.

python -m pipelines.ingest --ratings ratings.csv --items items.csv --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("ingest", __doc__))
