"""The stages of a job, in order: one chain, or with --refit one that is evaluated and one that is published."""

from collections.abc import Iterator, Mapping

from pipelines.engine.stage import Chain, ManifestsByName, Stage, StageDefinition
from pipelines.job.prepare import Job
from pipelines.job.publishing import JobStages
from pipelines.job.refit import settings_of_refit
from pipelines.stages import calibrate, embed, index, ingest, judge, lists, recommend, train
from pipelines.stages.judge import last_table
from schemas.workspace import Workspace

STAGES: Mapping[str, StageDefinition] = {
    each.STAGE.name: each.STAGE for each in (ingest, lists, train, embed, index, calibrate, recommend)
}
"""The stages that make a table, in order."""

COMMANDS = (*STAGES, "judge", "publish")


def no_stages_yet(job: Job) -> JobStages:
    """Returns a job that has not begun: two chains of stages to fill, or one that is both."""
    evaluated: ManifestsByName = {}
    return JobStages(evaluated, {} if job.settings.refit else evaluated, job.base)


def chains(job: Job, made: JobStages) -> Iterator[Chain]:
    """Yields each chain; the second only exists with --refit, and needs what the first one found.

    Where a model is kept that was refitted, it has been evaluated, and the second is all there is.
    """
    if not (job.base and job.settings.refit):
        yield Chain(job.settings, made.evaluated, job.base, job.last)
    if job.settings.refit:
        yield Chain(settings_of_refit(job.settings, made.evaluated), made.published, job.base, job.last)


def judges(job: Job, made: JobStages) -> Iterator[tuple[ManifestsByName, Stage]]:
    """Yields each chain and what judges its table; only the one to be published is compared with the last release's."""
    evaluated = None
    if made.evaluated and made.refitted:
        yield made.evaluated, judge.plan(Chain(job.settings, made.evaluated), None)
        evaluated = made.evaluated["judge"]
    last = last_table(Workspace(job.settings.output), made.published["recommend"])
    yield made.published, judge.plan(Chain(job.settings, made.published), last, evaluated)
