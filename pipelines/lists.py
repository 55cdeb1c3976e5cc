"""Reads the lists of users to serve and of items that must not be recommended, before anything is trained.

python -m pipelines.lists --output DIR [--users URI] [--exclude URI] [--block_items URI] [--allow_items URI]
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("lists", __doc__))
