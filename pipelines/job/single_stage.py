"""Runs one stage of a job as a command of its own."""

from collections.abc import Callable, Sequence

from pipelines.cli.command import run_command
from pipelines.engine.lease import LEFT_SECS, LeaseHolder
from pipelines.job.chains import no_stages_yet
from pipelines.job.finished import finished_before, keep_finished
from pipelines.job.prepare import check_ratings, prepare
from pipelines.job.runner import run_judges, run_stages
from schemas.workspace import Workspace


def run_single_stage(name: str, description: str | None = None) -> int:
    """Runs one stage as a command of its own, and returns its exit code.

    Args:
      name: of the stage.
      description: what --help says that it does.
    """
    return run_command(stage_command(name, description))


def stage_command(name: str, description: str | None = None) -> Callable[[Sequence[str]], None]:
    """Returns the command that runs one stage, whose output says where the result lies."""

    def command(argv: Sequence[str]) -> None:
        job, options = prepare(argv, description or "")
        if name == "ingest":
            check_ratings(job.settings)
        workspace = Workspace(job.settings.output)
        with LeaseHolder(workspace, name, LEFT_SECS) as lease:
            made = finished_before(name, job) if name != "ingest" else no_stages_yet(job)
            keep_finished(workspace, made, lease)
            if name == "judge":
                run_judges(job, made, options, lease)
            else:
                run_stages([name], job, made, options, lease)
        print(f"{job.settings.output}/{made.published[name].folder}")

    return command
