"""Runs the stages of a job, and publishes what they made."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.logs import LOGGER
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.progress import Progress
from pipelines.engine.stage import run_stage
from pipelines.job.chains import STAGES, chains, judges, no_stages_yet
from pipelines.job.finished import keep_finished
from pipelines.job.prepare import Job
from pipelines.job.publishing import READERS, AnotherPublished, JobStages, Outcome, publish
from pipelines.job.refit import check_same_sources
from pipelines.stages import export, lists
from pipelines.stages.judge import last_table
from schemas.release import read_latest, read_release
from schemas.workspace import Workspace


def run_stages(
    names: Sequence[str], job: Job, made: JobStages, options: PipelineOptions, lease: LeaseHolder | None = None
) -> None:
    """Runs stages of the chains that are not done, and adds their manifests; the lease keeps what they have made."""
    workspace, progress = Workspace(job.settings.output), Progress()
    for chain in chains(job, made):
        done = chain.done
        if made.evaluated and done is not made.evaluated:
            LOGGER.info("refit: the same again, the holdout included")
        for name in names:
            stage = STAGES[name].plan(chain)
            if name == "ingest":  # Nobody should hear that a list is not there once the ratings have been read.
                lists.resolve_lists(chain.settings.lists)
            done[name] = run_stage(stage, workspace, options, progress, lease)
            if name in READERS and done is not made.evaluated and name in made.evaluated:
                check_same_sources(made.evaluated[name], done[name])


def run_judges(job: Job, made: JobStages, options: PipelineOptions, lease: LeaseHolder | None = None) -> None:
    """Judges the finished tables, and adds the manifests of that; the lease keeps the table that they are compared with."""
    workspace = Workspace(job.settings.output)
    last = last_table(workspace, made.published["recommend"])
    if lease and last:
        lease.use(dict.fromkeys(map(workspace.stage_of, last.topk)))
    for done, stage in judges(job, made):
        done["judge"] = run_stage(stage, workspace, options, Progress(), lease)


def run(job: Job, options: PipelineOptions, lease: LeaseHolder | None = None) -> JobStages:
    """Runs every stage that is not done, and returns all their manifests; with a lease, nobody deletes them meanwhile."""
    workspace = Workspace(job.settings.output)
    latest = read_latest(workspace)
    if latest:
        read_release(workspace, latest)  # What is published must be understood before anything can be put in its place.
    made = no_stages_yet(job)
    if job.base and lease:
        keep_finished(workspace, JobStages({}, dict(job.base.stages)), lease)
    run_stages(list(STAGES), job, made, options, lease)
    run_judges(job, made, options, lease)
    if job.settings.export_saved_model:
        *_, chain = chains(job, made)
        chain.done["export"] = run_stage(export.plan(chain), workspace, options, Progress(), lease)
    return made


def publish_when_judged(job: Job, made: JobStages, options: PipelineOptions, lease: LeaseHolder | None = None) -> Outcome:
    """Publishes a table; where another run has published in the meantime, the table is first compared with that one."""
    while True:
        try:
            return publish(Workspace(job.settings.output), made, job.settings.gates, job.settings.job, lease)
        except AnotherPublished:
            run_judges(job, made, options, lease)
