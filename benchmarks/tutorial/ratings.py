"""The tutorial's data: ratings in the order of their file, shuffled and split as the tutorial splits them."""

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from benchmarks.tutorial import published
from schemas.blocks import Block, one_block
from schemas.errors import InputError
from schemas.interactions import INTERACTIONS, VALID
from transforms.ingest.read_source import cut_file, read_piece
from transforms.ingest.sources import Source, resolve_items, resolve_ratings
from transforms.ingest.validate import RatingRules, validate_items, validate_ratings


@dataclass(frozen=True)
class Ratings:
    """Ratings in codes, shuffled: the first four fifths are for training, the others for the test.

    Attributes:
      user_ids: [num_users] string, ascending: the user of each code.
      item_ids: [num_items] string, ascending: the catalogue.
      titles: [num_items] string: what to show for each item; its id where it has no title.
      user: [n] int32 codes.
      item: [n] int32 codes.
      table: the same rows, as INTERACTIONS.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    titles: np.ndarray
    user: np.ndarray
    item: np.ndarray
    table: pa.Table

    @property
    def num_train(self) -> int:
        return len(self.user) * 4 // 5

    @property
    def train(self) -> slice:
        return slice(0, self.num_train)

    @property
    def test(self) -> slice:
        return slice(self.num_train, None)


def read_ratings(ratings_uri: str, items_uri: str | None = None) -> Ratings:
    """Reads ratings, and items for their titles, as `ingest` reads them, and shuffles them with the tutorial's seed.

    The shuffle is the tutorial's own (`tf.data`, seed 42), but it depends on the order of the rows, and a file's is not that
    of TensorFlow Datasets: the test rows are drawn in the same way, and are not the same rows. Items are told apart by id, and
    by title in the tutorial, where two movies of one title are one (1,664 of 1,682 in MovieLens-100K).

    Raises:
      InputError: if there is nothing there, or too little to split.
    """
    source = resolve_ratings(ratings_uri)
    rows = one_block((validate_ratings(block, RatingRules())[0] for block in _raw_blocks(source)), VALID)
    rows = rows.take(pc.sort_indices(rows["position"]))
    num_rows = rows.num_rows
    if num_rows < 5:
        raise InputError(f"the benchmark splits ratings four to one, got {num_rows} that can be used: check {ratings_uri}")
    titles: dict[str, str] = {}
    if items_uri:
        for block in _raw_blocks(resolve_items(items_uri)):
            items, _ = validate_items(block)
            names = items["title"] if "title" in items.schema.names else items["item_id"]
            titles |= zip(items["item_id"].to_pylist(), pc.coalesce(names, items["item_id"]).to_pylist(), strict=True)
    order = shuffled(num_rows)
    table = pa.Table.from_batches([rows.select(INTERACTIONS.names)]).cast(INTERACTIONS).take(order)
    user_ids, user = np.unique(table["user_id"].to_numpy(), return_inverse=True)
    item_ids = np.unique(np.array([*titles, *table["item_id"].unique().to_pylist()], object))
    item = np.searchsorted(item_ids, table["item_id"].to_numpy())
    shown = np.array([titles.get(each, each) for each in item_ids], object)
    return Ratings(user_ids, item_ids, shown, user.astype(np.int32), item.astype(np.int32), table)


def _raw_blocks(source: Source) -> Iterator[Block]:
    for ordinal in range(len(source.files)):
        for piece in cut_file(ordinal, source):
            for block in read_piece(piece, source):
                if not isinstance(block, beam.pvalue.TaggedOutput):
                    yield block


def shuffled(num_rows: int) -> np.ndarray:
    """Returns [num_rows] int64: the rows in the order of the tutorial's shuffle."""
    tf.random.set_seed(published.SEED)
    rows = tf.data.Dataset.range(num_rows).shuffle(100_000, seed=published.SEED, reshuffle_each_iteration=False)
    return np.fromiter(rows.as_numpy_iterator(), np.int64, num_rows)
