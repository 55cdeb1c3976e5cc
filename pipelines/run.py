"""Runs the whole job: `python -m pipelines.run --ratings URI --items URI --output DIR`.

Ratings in, the top-k of every user out: ingest, lists, train, embed, index, recommend, judge, publish. A stage that is done is
skipped. With --refit, the stages up to recommend run twice: see `pipelines.job.refit`; with --export_saved_model, the published
table's model and index become one SavedModel too.
"""

import sys
import time
from collections.abc import Sequence

from pipelines.cli.command import run_command
from pipelines.engine.lease import LeaseHolder
from pipelines.job.check import check_job
from pipelines.job.prepare import check_ratings, prepare
from pipelines.job.publishing import JobStages, Outcome
from pipelines.job.runner import publish_when_judged, run
from pipelines.lifecycle.outcome import make_and_tell, telling_programs
from schemas.workspace import Workspace


def main(argv: Sequence[str]) -> None:
    """Runs the whole job and prints what it made.

    Raises:
      GatesFailed: if the table must not be published.
    """
    job, options = prepare(argv, str(__doc__), can_check=True)
    settings = job.settings
    started = time.monotonic()
    if settings.check:
        with telling_programs(settings):
            check_ratings(settings)
            check_job(job, options)
        return

    def make() -> tuple[JobStages, Outcome]:
        check_ratings(settings)
        with LeaseHolder(Workspace(settings.output), "run") as lease:
            made = run(job, options, lease)
            return made, publish_when_judged(job, made, options, lease)

    make_and_tell(settings, started, make)


if __name__ == "__main__":
    sys.exit(run_command(main))
