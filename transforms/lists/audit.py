"""Audits the lists of a table beside the stored embeddings and items, each of which is read once, a block at a time.

users, lists, exact lists ──┐
                            ├──> are they right, where does the search find less, what may be listed at all
stored embeddings, items ───┘     (canaries)            (recall by segment)           (counts)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam

from schemas.blocks import Block
from transforms.index.item_lists import CountItems, ItemLists
from transforms.io.read import PlacedBlock, ReadParquet
from transforms.lists.canaries import JudgeRun, Listed
from transforms.lists.recall_segments import Compared, RecallBySegment, served_lists
from transforms.search.list_settings import ListSettings


class Made(NamedTuple):
    """What is audited."""

    users: beam.PCollection[PlacedBlock]
    """Rows of USERS with their vectors."""
    topk: beam.PCollection[PlacedBlock]
    """Rows of TOPK."""
    exact: beam.PCollection[Block]
    """Rows of EXACT_LISTS."""


@dataclass
class AuditLists(beam.PTransform):
    """Reports whether the lists are right, where the search finds less, and how many items there are to list.

    Attributes:
      embeddings: paths of the stored embeddings: all that is indexed.
      items: paths of the files of SHARD_ITEMS.
      dim: of the vectors.
      canaries: the share of all users who are canaries; not more than those who are compared with exact search.
      settings: what a list holds.
      lists: which items may be recommended at all.
    """

    embeddings: list[str]
    items: list[str]
    dim: int
    canaries: float
    settings: ListSettings
    lists: ItemLists

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, made: Made) -> beam.PCollection[Any]:
        fraction = self.settings.checked_fraction
        root = made.users.pipeline
        embeddings = root | "ReadEmbeddings" >> ReadParquet(self.embeddings)
        indexed = root | "ReadItems" >> ReadParquet(self.items)
        served = made.topk | "PickServed" >> beam.MapTuple(lambda _, block: served_lists(block, fraction))
        judge = JudgeRun(self.dim, self.canaries, self.settings, self.lists)
        return (
            Listed(made.users, served, made.exact, embeddings) | "JudgeRun" >> judge,
            Compared(served, made.exact, indexed) | "RecallBySegment" >> RecallBySegment(),
            indexed | "CountItems" >> CountItems(self.lists),
        ) | "GatherReports" >> beam.Flatten()
