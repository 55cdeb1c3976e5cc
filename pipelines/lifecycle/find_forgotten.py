"""Finds users and items that are to be forgotten in what a release holds: its users, its catalogue, its bad rows, its lists."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from schemas.forgotten import Forgotten
from schemas.parquet_files import read_parquet_blocks, read_parquet_schema
from schemas.release_manifest import Release
from schemas.storage import join, list_files
from schemas.workspace import Workspace

_OF_USERS = ("user_id",)
_OF_ITEMS = ("item_id", "history", "excluded", "below_min_rating", "holdout", "recommendations")
"""Columns of ids, and of lists of ids."""

_DATASETS = {"ingest": ("users", "items", "rejected"), "lists": ("users", "blocked", "rejected"), "recommend": ("topk",)}
"""What is looked through of a stage; whatever else a release holds, beside its towers, is made of these."""


@dataclass(frozen=True)
class Named:
    """Users and items that were found."""

    users: frozenset[str]
    items: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.users or self.items)


NOBODY = Named(frozenset(), frozenset())


def find_forgotten(workspace: Workspace, release: Release, forgotten: Forgotten) -> Named:
    """Returns who of those to be forgotten has a row, or is in a list, of a release.

    Args:
      workspace: the output.
      release: which one.
      forgotten: who to look for.

    Raises:
      InputError: if a file of the release is damaged.
    """
    if not forgotten.digest:
        return NOBODY
    folders = [
        join(workspace.root, stage.folder, dataset) for name, stage in release.all_stages for dataset in _DATASETS.get(name, ())
    ]
    paths = [file.path for folder in folders for file in list_files(join(folder, "*.parquet"))]
    users, items = (
        frozenset(each for path in paths for each in _found_in(path, columns, pa.array(sorted(ids), pa.string())))
        for columns, ids in ((_OF_USERS, forgotten.users), (_OF_ITEMS, forgotten.items))
    )
    return Named(users, items)


def _found_in(path: str, columns: Sequence[str], ids: pa.Array) -> Iterator[str]:
    there = [name for name in read_parquet_schema(path).names if name in columns] if len(ids) else []
    for block in read_parquet_blocks(path, there) if there else ():
        for values in block.columns:
            if pa.types.is_list(values.type):
                values = values.flatten()
            if pa.types.is_struct(values.type):
                values = values.field("item_id")
            yield from values.filter(pc.is_in(values, ids)).unique().to_pylist()
