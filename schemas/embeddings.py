"""Candidate embeddings: one vector an item, in the space where a user's vector times an item's is its score."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented


def embeddings_schema(dim: int) -> pa.Schema:
    """Returns the schema of candidate embeddings of `dim` dimensions."""
    return dataset_schema(
        "embeddings",
        2,
        [
            documented("item_id", pa.string(), "the item"),
            documented("embedding", pa.list_(pa.float32(), dim), f"[{dim}] float32, all finite"),
        ],
    )


ID_MAP = dataset_schema("id_map", 2, [documented("item_id", pa.string(), "the item in this row of the shard; ascending")])
"""What turns a shard's row numbers back into items: row i of the shard's vectors is row i of its id map."""

SHARD_ITEMS = dataset_schema(
    "shard_items",
    1,
    [
        documented("item_id", pa.string(), "the item in this row of the shard; ascending"),
        documented("code", pa.int32(), "the item's code in the catalogue"),
        documented("train_count", pa.int64(), "training positives of the item"),
        documented("recent_count", pa.float64(), "the same, recent ones counting more: see the catalogue"),
    ],
)
"""What the catalogue says of the items of a shard, row by row: this changes from day to day, also where vectors do not."""
