"""Which items may be recommended at all: a list of items that must not be, and a list of the only ones that may be."""

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, one_block
from schemas.errors import InputError
from schemas.storage import WrittenFile
from transforms.read import ReadParquet
from transforms.sources import Source, cut_file, read_piece
from transforms.validate import as_text
from transforms.write import Part, WriteParts


@dataclass(frozen=True)
class ItemLists:
    """Lists of items that hold for every user; they may change from day to day without a new model or index.

    Attributes:
      block: items that must not be recommended; None blocks none.
      allow: the only items that may be; None allows all.
    """

    block: Source | None = None
    allow: Source | None = None

    @property
    def given(self) -> list[Source]:
        """The lists that there are."""
        return [source for source in (self.block, self.allow) if source]

    def blocked(self, item_ids: pa.Array) -> np.ndarray:
        """Returns [n] bool: which of the items must not be recommended. The lists are read a block at a time.

        Raises:
          InputError: if a list has a row without an item: what should be blocked must not slip through.
        """
        blocked = np.zeros(len(item_ids), bool)
        if self.allow:
            blocked[:] = True
            for listed in ids_of(self.allow):
                blocked &= ~_is_in(item_ids, listed)
        if self.block:
            for listed in ids_of(self.block):
                blocked |= _is_in(item_ids, listed)
        return blocked


def _is_in(ids: pa.Array, listed: pa.Array) -> np.ndarray:
    return pc.is_in(ids, listed).to_numpy(zero_copy_only=False)


def ids_of(source: Source) -> Iterator[pa.Array]:
    """Yields the item ids of a list, some thousands at a time, as text.

    Raises:
      InputError: if a row has no item, or cannot be read.
    """
    for ordinal in range(len(source.files)):
        for piece in cut_file(ordinal, source):
            for found in read_piece(piece, source):
                if not isinstance(found, pa.RecordBatch):
                    row = found.value.slice(0, 1).to_pylist()[0]
                    raise InputError(
                        f"{row['source']} has a line that cannot be read ({row['reason']}): {row['text']!r}: mend it"
                    )
                ids = as_text(found["item_id"])
                missing = pc.or_kleene(pc.is_null(ids), pc.equal(pc.utf8_trim_whitespace(ids), "")).fill_null(True)
                if pc.any(missing).as_py():
                    first = int(np.flatnonzero(missing.to_numpy(zero_copy_only=False))[0])
                    raise InputError(
                        f"{found['source'][first].as_py()} has a row without an item_id (position "
                        f"{found['position'][first].as_py()}): a list of items must name one in every row: remove the row"
                    )
                yield ids


BLOCKED = "blocked"
"""The folder, below a stage's, that holds the ids of indexed items that may not be recommended."""

BLOCKED_ITEMS = pa.schema([pa.field("item_id", pa.string(), nullable=False)])


@dataclass
class WriteBlocked(beam.PTransform):
    """Writes which indexed items may not be recommended, so that a later release knows; one file, and none without lists.

    Attributes:
      root: the folder of the attempt.
      embeddings: paths of the stored embeddings: all that is indexed.
      lists: which items may be recommended at all.
    """

    root: str
    embeddings: list[str]
    lists: ItemLists

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[WrittenFile]:
        blocked = root | "ReadItems" >> ReadParquet(self.embeddings if self.lists.given else [], ["item_id"])
        return (
            root
            | "OneFile" >> beam.Create([0] if self.lists.given else [])
            | "GatherBlocked" >> beam.Map(_part_of_blocked, beam.pvalue.AsList(blocked | beam.Map(self._blocked)))
            | "WriteFile" >> WriteParts(self.root, BLOCKED, BLOCKED_ITEMS)
        )

    def _blocked(self, block: Block) -> Block:
        return block.filter(pa.array(self.lists.blocked(block["item_id"]))).cast(BLOCKED_ITEMS)


def _part_of_blocked(part: int, blocks: list[Block]) -> Part:
    items = one_block(blocks, BLOCKED_ITEMS)
    return part, [items.take(pc.sort_indices(items["item_id"]))]


@dataclass
class CountItems(beam.PTransform):
    """Reports how many items the index has, and how many of them may be recommended.

    Attributes:
      embeddings: paths of the stored embeddings: all that is indexed.
      lists: which items may be recommended at all.
    """

    embeddings: list[str]
    lists: ItemLists

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[dict[str, int]]:
        return root | "ReadItems" >> ReadParquet(self.embeddings, ["item_id"]) | "CountBlock" >> beam.Map(self._count)

    def _count(self, block: Block) -> dict[str, int]:
        return {"items_indexed": block.num_rows, "items_allowed": int((~self.lists.blocked(block["item_id"])).sum())}
