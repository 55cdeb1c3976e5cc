"""Reads ratings and items, sets aside rows that cannot be used, with the reason, and splits the rest.

python -m pipelines.ingest --ratings ratings.csv --items items.csv --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("ingest", __doc__))
