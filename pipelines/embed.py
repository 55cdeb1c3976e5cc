"""Embeds the catalogue with the item tower.

python -m pipelines.embed --output DIR
"""

import sys

from pipelines.job.single_stage import run_single_stage

if __name__ == "__main__":
    sys.exit(run_single_stage("embed", __doc__))
