"""Publishes the newest finished table as a release, if it passes its gates.

python -m pipelines.publish --output DIR
"""

import sys
import time
from collections.abc import Sequence

from pipelines.cli.command import run_command
from pipelines.engine.lease import LeaseHolder
from pipelines.job.finished import finished_before, keep_finished
from pipelines.job.prepare import prepare
from pipelines.job.publishing import JobStages, Outcome, publish
from pipelines.lifecycle.outcome import make_and_tell
from schemas.workspace import Workspace


def main(argv: Sequence[str]) -> None:
    """Publishes the newest table, or that of the run with these flags where --ratings is among them.

    Raises:
      GatesFailed: if the table must not be published.
    """
    job, _ = prepare(argv, str(__doc__))
    settings, workspace = job.settings, Workspace(job.settings.output)

    def make() -> tuple[JobStages, Outcome]:
        with LeaseHolder(workspace, "publish") as lease:
            made = finished_before("publish", job)
            keep_finished(workspace, made, lease)
            return made, publish(workspace, made, settings.gates, settings.job, lease)

    make_and_tell(settings, time.monotonic(), make)


if __name__ == "__main__":
    sys.exit(run_command(main))
