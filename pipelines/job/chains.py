"""The stages of a job, in order: one chain, or with --refit one that is evaluated and one that is published."""

from collections.abc import Iterator, Mapping
from types import ModuleType

from pipelines.cli.settings import Settings
from pipelines.engine.stage import Stage
from pipelines.job.publishing import JobStages, ManifestsByName
from pipelines.job.refit import settings_of_refit
from pipelines.job.reuse import kept_model
from pipelines.stages import embed, index, ingest, judge, lists, recommend, train
from pipelines.stages.judge import last_table
from schemas.manifest import StageManifest
from schemas.workspace import Workspace

STAGES: Mapping[str, ModuleType] = {
    "ingest": ingest,
    "lists": lists,
    "train": train,
    "embed": embed,
    "index": index,
    "recommend": recommend,
}
"""The stages that make a table, in order; each module's `stage(settings, done)` says what it needs and how to build it."""

COMMANDS = (*STAGES, "judge", "publish")


def no_stages_yet(settings: Settings) -> JobStages:
    """Returns a job that has not begun: two chains of stages to fill, or one that is both."""
    evaluated: ManifestsByName = {}
    return JobStages(evaluated, {} if settings.refit else evaluated, settings.base)


def chains(settings: Settings, made: JobStages) -> Iterator[tuple[Settings, ManifestsByName]]:
    """Yields each chain with its settings; the second only exists with --refit, and needs what the first one found.

    Where a model is kept that was refitted, it has been evaluated, and the second is all there is.
    """
    if not (settings.base and settings.refit):
        yield settings, made.evaluated
    if settings.refit:
        yield settings_of_refit(settings, made.evaluated), made.published


def kept_stage(name: str, settings: Settings, ask: Settings, done: ManifestsByName) -> StageManifest | None:
    """Returns a stage of a chain that is kept from a release, and not made: training, where a model is reused."""
    return kept_model(settings, ask.base, done["ingest"]) if name == "train" and ask.base else None


def judges(settings: Settings, made: JobStages) -> Iterator[tuple[ManifestsByName, Stage]]:
    """Yields each chain and what judges its table; only the one to be published is compared with the last release's."""
    if made.evaluated and made.refitted:
        yield made.evaluated, judge.stage(settings, made.evaluated, None)
    last = last_table(Workspace(settings.output), made.published["recommend"])
    evaluated = made.evaluated["judge"] if made.evaluated and made.refitted else None
    yield made.published, judge.stage(settings, made.published, last, evaluated)
