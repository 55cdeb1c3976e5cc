"""Exports what makes the table as a SavedModel: reads the users and the shards, and has `served_model` put them into a graph.

TensorFlow numbers the functions of a graph as they come in a process, and saves the numbers. So that the same inputs give the
same files whatever else a process has done, and so that its memory is given back, a model is made in a process of its own.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc

from schemas.blocks import one_block
from schemas.embeddings import SHARD_ITEMS
from schemas.errors import InputError
from schemas.storage import WrittenFile, upload_folder
from schemas.stored import StoredFolder, checked_folder
from schemas.users import USERS
from transforms.index.load import IndexFiles
from transforms.index.popular import RECENT
from transforms.search.id_map import IdMap
from transforms.search.list_settings import ListSettings, unwanted_of

MODEL = "saved_model"
VERSION = "1"
"""TensorFlow Serving wants a folder of numbered versions."""


@dataclass(frozen=True)
class ExportJob:
    """What a model is made of.

    Attributes:
      users: rows of USERS, all of them.
      tower: the user tower's folder.
      index: what is searched, and which of its items may be recommended.
      settings: what a list holds, and how it is searched for.
    """

    users: StoredFolder
    tower: StoredFolder
    index: IndexFiles
    settings: ListSettings


def check_shards(job: ExportJob) -> None:
    """Raises InputError if a shard is of a kind that ScaNN's TensorFlow ops cannot hold."""
    for shard in job.index.of_shards:
        plan = job.index.plan_of(shard)
        if plan.kind == "tree" and plan.soar:
            raise InputError(
                f"shard {shard} has a tree with SOAR, which ScaNN's TensorFlow ops cannot hold: build the index with --no_soar"
            )


def write_model(job: ExportJob, folder: Path) -> None:
    """Makes the model and writes it to a local folder.

    Raises:
      InputError: if a shard is of a kind that ScaNN's TensorFlow ops cannot hold, or no item may be recommended.
    """
    import tensorflow as tf

    from transforms.serving.model import KnownUsers, ServedItems, ServedModel, save_model
    from transforms.serving.scann import ServedShard

    check_shards(job)
    shards, allowed = [], []
    for shard in job.index.of_shards:
        loaded = job.index.load(shard)
        allowed.append(loaded.items)
        if loaded.items.num_rows:
            blocked = ~np.isin(loaded.shard.codes, loaded.items["code"].to_numpy())
            shards.append(ServedShard(loaded.shard, blocked))
    items = one_block(allowed, SHARD_ITEMS)
    items = items.take(pc.sort_indices(items["code"]))
    if not items.num_rows:
        raise InputError("no item may be recommended: check the ids in --block_items and --allow_items")
    id_map = IdMap(items["item_id"], items["code"].to_numpy())
    users = one_block(job.users.blocks(), USERS)
    known = KnownUsers(users["user_id"], users["history"], id_map.lists_of(*unwanted_of(users, job.settings).columns))
    served = ServedItems(
        items["item_id"], items["code"].to_numpy().astype(np.int64), items[RECENT].to_numpy().astype(np.float32)
    )
    settings = job.settings
    # The tower's vocabulary is a file beside it, which TensorFlow copies when the model is saved.
    with checked_folder(job.tower.path, job.tower.files) as tower_folder:
        tower = tf.saved_model.load(str(tower_folder))

        def make(scratch: Path) -> ServedModel:
            return ServedModel(tower, known, served, shards, settings.k, settings.search, settings.recommend_seen, scratch)

        save_model(make, folder)


def export_model(job: ExportJob, root: str) -> list[WrittenFile]:
    """Makes the model in a process of its own, and writes it below `root`, which may be remote."""
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(write_model, job, Path(folder, VERSION)).result()
        return upload_folder(Path(folder), root, MODEL)


@dataclass
class ExportModel(beam.PTransform):
    """Exports the model.

    Attributes:
      root: the folder of the attempt.
      job: what it is made of.
    """

    root: str
    job: ExportJob

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[WrittenFile]:
        return root | "Once" >> beam.Create([self.job]) | "WriteModel" >> beam.FlatMap(export_model, self.root)
