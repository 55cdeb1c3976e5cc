"""Exports the user tower, the index and what users have seen as one SavedModel: `python -m pipelines.export --output DIR`.

User ids in, item ids and scores out, the same as in the newest table; see docs/guides/serving.md.
"""

import apache_beam as beam

from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.calibrate import index_files
from pipelines.stages.lists import check_same_lists, reads_of
from schemas.manifest import users_of
from schemas.stage_files import ITEMS_OF_SHARDS, USER_TOWER
from transforms.search.list_settings import ListSettings
from transforms.search.search import SearchSettings
from transforms.serving.export import MODEL, ExportJob, ExportModel


def plan(chain: Chain) -> Stage[ExportJob]:
    """Returns the stage, which reads users, the user tower and the index, and takes its settings from the table.

    Raises:
      InputError: if lists are named that are not those of the table.
    """
    settings, done = chain.settings, chain.done
    trained, recommended = (done[name] for name in ("train", "recommend"))
    made = {name: recommended.settings[name] for name in ("k", "recommend_seen", "search")}
    check_same_lists(settings, done)
    reads = {**reads_of(done), "train": [USER_TOWER], "index": ["shards"], "calibrate": [ITEMS_OF_SHARDS]}
    job = ExportJob(
        users=users_of(done).stored(settings.output, "users"),
        tower=trained.stored(settings.output, USER_TOWER),
        index=index_files(settings.output, done),
        settings=ListSettings(made["k"], made["recommend_seen"], SearchSettings(**made["search"]), checked_fraction=0.0),
    )
    return Stage(
        STAGE,
        settings=made,
        inputs={name: done[name] for name in reads},
        reads=reads,
        job=job,
    )


def build(root: beam.Pipeline, attempt: str, job: ExportJob) -> Reports:
    """Adds the stage's steps: one worker makes the model of all users and shards."""
    shape = {"k": job.settings.k, "path": MODEL}
    return [root | "ExportModel" >> ExportModel(attempt, job), root | "ReportShape" >> beam.Create([shape])]


STAGE = StageDefinition("export", __name__, plan, build)
